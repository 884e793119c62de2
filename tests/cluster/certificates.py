"""Certificates for one run of the tests, made by the openssl program."""

import pathlib
import subprocess
import tempfile

DAYS = "2"
SUBJECT_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


class Certificates:
    """Paths of PEM files in a folder of their own. What begins with `other_` comes from a root that nobody trusts."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self._folder.name)
        for prefix in ("", "other_"):
            root_cert, root_key = self._make_root(folder, prefix)
            setattr(self, prefix + "root_cert", root_cert)
            for who in ("server", "client"):
                cert, key = self._make(folder, prefix + who, root_cert, root_key)
                setattr(self, f"{prefix}{who}_cert", cert)
                setattr(self, f"{prefix}{who}_key", key)

    def close(self):
        self._folder.cleanup()

    @staticmethod
    def _make_root(folder, prefix):
        cert, key = folder / f"{prefix}root.pem", folder / f"{prefix}root.key"
        _openssl("req", "-x509", *_new_key(key), "-out", cert, "-days", DAYS, "-subj", f"/CN={prefix}root")
        return cert, key

    @staticmethod
    def _make(folder, name, root_cert, root_key):
        request, cert, key = folder / f"{name}.csr", folder / f"{name}.pem", folder / f"{name}.key"
        names = folder / f"{name}.ext"
        names.write_text(SUBJECT_NAMES)
        _openssl("req", *_new_key(key), "-out", request, "-subj", f"/CN={name}")
        signed_by = ("-CA", root_cert, "-CAkey", root_key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, "-out", cert, "-days", DAYS, "-extfile", names, *signed_by)
        return cert, key


def _new_key(path):
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path


def _openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

"""Proxies that the environment names: when they are used, and what an error says of them."""

import os
import unittest
import unittest.mock

import goldfinch
from fake_server import SECONDS_MAX, FakeServer, echo
from goldfinch import _connection

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy", "NO_PROXY")
DEAD = "http://user:password@127.0.0.1:9"  # nobody listens there


class ProxyTest(unittest.TestCase):
    def environment(self, **values):
        patch = unittest.mock.patch.dict(os.environ, values)
        patch.start()
        self.addCleanup(patch.stop)
        for name in set(VARIABLES) - set(values):
            os.environ.pop(name, None)

    def test_this_machine_is_reached_directly(self):
        self.environment(http_proxy=DEAD)
        server = FakeServer()
        self.addCleanup(server.stop)
        server.generate = echo
        for host in ("localhost", "127.0.0.1"):
            address = server.address.replace("localhost", host)
            with self.subTest(host), goldfinch.Client(address, timeout=SECONDS_MAX) as client:
                self.assertEqual(client.generate("hello").text, "hello")

    def test_who_goes_by_the_proxy(self):
        self.environment(http_proxy=DEAD, no_proxy="10.0.0.7,.example.com")
        for host in ("::1", "127.3.2.1", "LocalHost", "10.0.0.7", "gpu.example.com"):
            self.assertEqual(_connection.proxy_of(host), "", host)
        for host in ("10.0.0.8", "example.org"):
            self.assertEqual(_connection.proxy_of(host), "the proxy 127.0.0.1:9, which the variable http_proxy names")
        self.environment(http_proxy=DEAD, no_grpc_proxy="example.org")
        self.assertEqual(_connection.proxy_of("example.org"), "")
        self.environment(https_proxy="http://a:1", http_proxy=DEAD)
        self.assertIn("https_proxy", _connection.proxy_of("example.org"))
        self.environment()
        self.assertEqual(_connection.proxy_of("example.org"), "")

    def test_an_error_names_the_proxy(self):
        self.environment(http_proxy=DEAD)
        with goldfinch.Client("192.0.2.1:50051", timeout=SECONDS_MAX) as client:
            with self.assertRaises(goldfinch.UnavailableError) as caught:
                client.model_info()
        self.assertIn("by the proxy 127.0.0.1:9, which the variable http_proxy names", str(caught.exception))
        self.assertNotIn("password", str(caught.exception))


class AddressTest(unittest.TestCase):
    def test_an_address_has_a_port(self):
        self.assertEqual(_connection.host_of("host:1"), "host")
        self.assertEqual(_connection.host_of("[::1]:50051"), "::1")
        missing = ("", "host", "host:", ":1", "10.0.0.7", "[::1]", "host:0", "host:65536")
        for address in (*missing, "::1", "::1:1", "[::1:1"):
            with self.subTest(address), self.assertRaisesRegex(ValueError, "is not HOST:PORT: "):
                goldfinch.Client(address)

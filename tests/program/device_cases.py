"""What computes: --device and --dtype, on a machine without a GPU (program.py hides what there is)."""

from program import DEMO_MODEL, ProgramTest, flags, generate, listed

SHORT = {"max_tokens": 8}


class DeviceTest(ProgramTest):
    def commands(self, **values):
        """Each command that computes."""
        yield generate("And ", **SHORT, **values)
        tokens, out = self.write_tokens([1, 2]), self.folder / "logits.npy"
        yield ["logits", *flags(model=DEMO_MODEL, tokens=tokens, out=out, threads=1, **values)]
        yield ["serve", *flags(model=DEMO_MODEL, grpc_port=0, metrics_port=-1, threads=1, **values)]
        yield ["worker", *flags(coordinator="127.0.0.1:1", threads=1, **values)]

    def all_refuse(self, says, **values):
        for arguments in self.commands(**values):
            with self.subTest(arguments[0], **values):
                self.refuses(*arguments, code=2, says=listed(says))

    def test_the_cpu_is_what_there_is_without_cuda(self):
        said = [
            self.succeeds(*generate("And ", **SHORT, **values)).stdout
            for values in ({}, {"device": "auto"}, {"device": "cpu"}, {"device": "cpu", "dtype": "f32"})
        ]
        self.assertTrue(said[0])
        self.assertEqual(set(said), {said[0]})

    def test_cuda_where_there_is_none(self):
        for device in ("cuda", "cuda:0", "cuda:1"):
            self.all_refuse(f"--device {device}: ", device=device)
        self.all_refuse("CUDA", device="cuda")

    def test_types_that_the_cpu_does_not_compute_in(self):
        for dtype in ("f16", "bf16"):
            self.all_refuse(f"--dtype is {dtype}, the CPU computes in f32 only", device="cpu", dtype=dtype)
        self.all_refuse(["--dtype is bf16, the CPU computes in f32 only (", "CUDA"], dtype="bf16")

    def test_values_that_are_none(self):
        for device in ("gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:99999"):
            self.all_refuse(["--device", device, "auto, cpu, cuda and cuda:N"], device=device)
        self.all_refuse(["--dtype", "f64", "bf16"], dtype="f64")

    def test_lists_of_devices(self):
        commands = (
            ["serve", *flags(model=DEMO_MODEL, grpc_port=0, metrics_port=-1)],
            ["plan", *flags(model=DEMO_MODEL)],
            ["worker", *flags(coordinator="127.0.0.1:1")],
        )
        for command in commands:
            for devices, says in (
                ("", "none of all, cpu, and GPU numbers and ranges such as 0,2,4-7"),
                ("0-x", 'it has "0-x"'),
                ("cuda:0", "none of all, cpu"),
                ("7-3", '7-3 has "7-3", which runs backwards'),
                ("0-2,1", "0-2,1 names GPU 1 twice"),
                ("0-1024", "the largest GPU number is 1023"),
                ("0-7", "--devices names GPU 0, this machine has no GPU that CUDA can use"),
            ):
                with self.subTest(command[0], devices=devices):
                    self.refuses(*command, "--devices", devices, code=2, says=["--devices", says])
            both = flags(device="cpu", devices="cpu")
            self.refuses(*command, *both, code=2, says=["--device", "--devices"])
        self.refuses(*generate("And ", devices="cpu"), code=2, says="--devices")

    def test_shares_of_memory(self):
        for share in ("0", "-0.1", "1.01", "nan", "most"):
            says = ["--gpu-memory-utilization", share, "is not above 0 and at most 1"]
            self.all_refuse(says, gpu_memory_utilization=share)
        # The share limits only a GPU's memory: the CPU's memory is the machine's.
        self.succeeds(*generate("And ", **SHORT, gpu_memory_utilization=0.001))
        both = flags(gpu_memory_utilization=0.5, memory="1GB")
        for command in (["serve", "--model", DEMO_MODEL], ["worker", "--coordinator", "127.0.0.1:1"]):
            self.refuses(*command, *both, code=2, says=["--gpu-memory-utilization", "--memory"])

    def test_commands_that_compute_nothing(self):
        for command in (["inspect", DEMO_MODEL], ["tokenize", *flags(vocab="bytes", text="a")]):
            self.refuses(*command, "--device", "cpu", code=2, says="--device")
        self.refuses("generate", *flags(server="127.0.0.1:1", device="cpu"), code=2,
                     says="--device cannot be used with --server")

"""Test the extra `cpu` in a fresh environment. `make package` runs it; torch is too slow for CI."""

import pytest

QUICK = "--depth 1 --dim 32 --dim-head 16 --frames 3 --res 32x48 --bench-seconds 0"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cpu(environment, wheel, source):
    made = environment("cpu")
    made.install(f"{wheel}[cpu]", constraints=source / "constraints.txt")
    return made


def test_every_command_of_the_extra_cpu_runs(
    cpu, without_a_runtime, with_a_runtime, with_onnx, an_export, real_clips, tmp_path
):
    commands = without_a_runtime | with_a_runtime | with_onnx
    commands |= {
        "export": ("export", *QUICK.split(), "-o", "made", "--quiet"),
        "verify": ("verify", "made"),
        "ladder": ("ladder", "made"),
        "tune-precision": ("tune-precision", "made", "--budget", "1"),
    }
    for name, arguments in commands.items():
        done = cpu.tsformer(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        assert "install" not in done.stderr, name

"""Test the extra `cpu` in fresh environments. `make package` runs it; torch is too slow for CI.

The lowest torch comes with CUDA from the package index, so this needs 6 GB of disk.
"""

import pytest

QUICK = ("--depth", "1", "--dim", "32", "--dim-head", "16", "--frames", "3", "--res", "32x48")
NO_TIMING = ("--bench-seconds", "0")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("versions", ["constraints.txt", "tests/package/lowest_cpu.txt"])
def test_every_command_of_the_extra_cpu_runs(
    versions,
    environment,
    wheel,
    source,
    without_a_runtime,
    with_a_runtime,
    with_onnx,
    tmp_path,
):
    cpu = environment("cpu")
    cpu.install(f"{wheel}[cpu]", constraints=source / versions)
    commands = without_a_runtime | with_a_runtime | with_onnx
    for precision in ("fp32", "fp16", "bf16", "int8"):
        how = ("--precision", precision, "-o", precision, "--quiet")
        commands[f"export {precision}"] = ("export", *QUICK, *NO_TIMING, *how)
    commands |= {
        "verify": ("verify", "fp32"),
        "ladder": ("ladder", "fp32"),
        "tune-precision": ("tune-precision", "fp32", "--budget", "1"),
        "sweep": ("sweep", *QUICK, *NO_TIMING, "--attn", "fastformer,regular", "-o", "grid"),
    }
    for name, arguments in commands.items():
        done = cpu.tsformer(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        assert "install" not in done.stderr, name

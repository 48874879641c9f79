"""Apply small changes of meaning to a copy of the source, and run the tests of each changed file.

    python scripts/mutants.py              all mutants, and those that survive
    python scripts/mutants.py --list       the names alone
    python scripts/mutants.py --only judge some files

A mutant that no test kills marks a claim that nothing checks. The exit code is 1 if more than
`MOST_SURVIVORS` survive.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_SURVIVORS = 2
COPIED = ("model", "exporter", "tests", "scripts", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """A change of one text in one file, and the tests that must notice it."""

    file: str
    before: str
    after: str
    tests: str

    @property
    def name(self) -> str:
        """The file, and what is changed."""
        return f"{self.file}: {self.before.strip()[:48]} -> {self.after.strip()[:40]}"


def _of(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [
        Mutant(f"exporter/{file}.py", *change, f"tests/exporter/{tests}.py") for change in changes
    ]


MUTANTS = [
    *_of(
        "proof/decide",
        "proof/test_judge",
        ("FLOOR_FACTOR = 4.0", "FLOOR_FACTOR = 40.0"),
        ('"fp32": 1e-6', '"fp32": 1e-5'),
        ("ILL_CONDITIONED = 1e-3", "ILL_CONDITIONED = 1e-2"),
        ("if len(per_input) < min_inputs", "if len(per_input) < min_inputs - 1"),
        ("if worst.rel_l2 > tolerance", "if worst.rel_l2 > 2 * tolerance"),
        ("entry.margin > least", "entry.margin > 2 * least"),
        ("if invariance > tolerance", "if invariance > 10 * tolerance"),
        ("if spread <= max(", "if 10 * spread <= max("),
    ),
    *_of(
        "proof/judge",
        "proof/test_judge",
        ("max(FLOOR_FACTOR * floor, TINY[precision])", "FLOOR_FACTOR * floor + TINY[precision]"),
        ("(forward, again if batch == 1 else forward[::-1])", "(forward,)"),
        ("zip(reference.batched, reference.floor[list(reference.beside)], strict=True)", "[]"),
        ("fp32=reference.floor,", "fp32=reference.fp32,"),
    ),
    *_of(
        "proof/distance",
        "proof/test_judge",
        ("/ max(norm, least)", "/ (max(norm, least) + 1)"),
        ("SMALL = 0.5", "SMALL = 5.0"),
        ('distance * float("inf")', "0.0"),
        ("return 1.0 if np.array_equal(output, truth) else 0.0", "return 1.0"),
        ("truth.mean(0)", "truth[0]"),
    ),
    *_of(
        "proof/distribution",
        "proof/test_distribution",
        ("factor * floor.median", "4 * factor * floor.median"),
        ("if abs(found.bias) > bias", "if found.bias > 10 * bias"),
        ("weights = np.square(norms / lengths)", "weights = np.ones(len(norms))"),
        ("math.sqrt(float(apart)) / float(weights.sum())", "math.sqrt(float(apart))"),
    ),
    *_of(
        "proof/rows",
        "proof/test_judge",
        ("order[(start + i) % len(order)]", "order[min(start + i, len(order) - 1)]"),
        ("rows[c][i % len(rows[c])]", "rows[c][0]"),
    ),
    *_of(
        "graph/weights",
        "proof/test_structure",
        ("(values - zero) * steps", "values * steps + zero"),
        ("bits ^= bits >> np.uint64(29)", "bits *= np.uint64(0)"),
        ("got.get(name) != expected.get(name)", "name not in expected"),
    ),
    *_of(
        "graph/raised",
        "proof/test_structure",
        ('helper.make_node("Sub", [source, zero]', 'helper.make_node("Add", [source, zero]'),
        ("entry.i = TensorProto.DOUBLE", "pass"),
    ),
    *_of(
        "runners/exact",
        "proof/test_structure",
        ("variance + epsilon", "variance + 1.1 * epsilon"),
        ("0.5 * x * (1 + erf(x / math.sqrt(2)))", "0.5 * x * (1 + np.tanh(0.8 * x))"),
    ),
    *_of(
        "graph/operators",
        "graph/test_operators",
        ("counts[node.op_type] > most", "counts[node.op_type] > most + 1"),
        ("return taken - others", "return taken"),
        ("branches or not live", "not live"),
    ),
    *_of(
        "graph/nodes",
        "graph/test_nodes",
        ("yield from map(_tell_value, graph.output)", "yield from ()"),
        ("{[*tensor.dims]} {content}", "{[*tensor.dims]}"),
    ),
    *_of(
        "proof/numbers",
        "proof/test_numbers",
        ("(whole and isinstance(each, int))", "isinstance(each, int)"),
        ("each in exact.to(dtype).tolist()", "each in exact.tolist()"),
    ),
    *_of(
        "proof/prove",
        "proof/test_prove",
        ("REWRITE_LIMIT = 1e-9", "REWRITE_LIMIT = 1e-2"),
        ("batch = 1 if job.model.family == MODULE else 2", "batch = 1"),
    ),
    *_of(
        "runners/eager",
        "runners/test_eager",
        ("waiting.append(pool.submit", "waiting.appendleft(pool.submit"),
        ("if key not in self._known", "if not self._known"),
    ),
    *_of(
        "to_onnx/small_steps",
        "to_onnx/test_small_steps",
        ("largest / 127", "largest / 255"),
        ("(largest > 0) & (largest < 1)", "(largest < 1)"),
    ),
    *_of(
        "inputs/pictures",
        "inputs/test_pictures",
        ("clip[shape[0] // 2] = 0", "pass"),
        ("clip[0] = clip[1:].mean(0)", "clip[0] = clip[1]"),
        ("clip[-1] = 0", "pass"),
        ("picture += side**0.5 * large", "picture += large / side"),
    ),
    *_of(
        "inputs/clips",
        "inputs/test_clips",
        ("preprocessing, seed=1)", "preprocessing, seed=0)"),
        ('array.take(places, 0, mode="wrap")', 'array.take(places, 0, mode="clip")'),
        ("masks[0::2] = True", "pass"),
    ),
    *_of(
        "files/reference",
        "files/test_reference",
        ('_check(len(arrays) == known, "its entries")', "pass"),
        ("< _MOST_BYTES", "< 10**6 * _MOST_BYTES"),
        ("fits and set(one.places) <= set(range(n))", "fits"),
    ),
    *_of(
        "files/packing",
        "files/test_packing",
        ("np.ascontiguousarray(planes.T)", "np.ascontiguousarray(planes)"),
    ),
    *_of(
        "inputs/video",
        "inputs/test_video",
        ("video / np.float32(255)", "video / np.float32(256)"),
        ("np.rint(255 * pixels)", "np.floor(255 * pixels)"),
        ("video[:, :, ::-1]", "video[:, ::-1]"),
        ("BT601_LUMA = np.array([0.299, 0.587", "BT601_LUMA = np.array([0.287, 0.599"),
        ("count < frames and", "count < frames - 1 and"),
    ),
    *_of(
        "inputs/resize",
        "inputs/test_video",
        ("// 2", "// 2 + 1"),
        ("max(scale, 1.0)", "1.0"),
        ("np.arange(source) + 0.5", "np.arange(source)"),
    ),
    *_of(
        "inputs/sampling",
        "inputs/test_sampling",
        ("Fraction(2 * clip[0] + 1, 2 * clip[1])", "Fraction(clip[0] + 1, 2 * clip[1])"),
        ("(window - 1) / max(frames - 1, 1)", "window / max(frames - 1, 1)"),
    ),
    *_of(
        "files/manifest",
        "files/test_manifest",
        ('"sha256": sha256(path)', '"sha256": sha256(files[0])'),
        ("if (got := sha256(file)) != expected", "if not (got := sha256(file))"),
        ("if outside := [", "if outside := [][:0] and ["),
        ("files.items() if unchanged else ()", "()"),
    ),
    *_of(
        "rewrite/rules/fold_norm",
        "rewrite/rules/test_fold_norm",
        ("bias.unsqueeze(1) / weight.shape[1]", "bias.unsqueeze(1) / (weight.shape[1] + 1)"),
        ("weight - weight.mean(1, keepdim=True)", "weight"),
    ),
    *_of(
        "rewrite/rules/fold_fc",
        "rewrite/rules/test_fold_fc",
        (" + after.bias.double()", ""),
    ),
    *_of(
        "rewrite/rules/class_token",
        "rewrite/rules/test_class_token",
        ("tokens[..., :1, :]", "tokens[..., -1:, :]"),
    ),
    *_of(
        "rewrite/rules/few_features",
        "rewrite/rules/test_few_features",
        ("(q_logits + largest)", "(q_logits - largest)"),
        ("> attention.dim_head", "> 8 * attention.dim_head"),
    ),
]


def survives(mutant: Mutant) -> bool:
    """Tell whether the tests still pass; the slow ones run only if the others do."""
    return run_tests(mutant.tests, mutant, "not slow") and run_tests(mutant.tests, mutant, "slow")


def run_tests(tests: str, mutant: Mutant | None = None, marked: str = "") -> bool:
    """Run tests in a copy of the tree, with a mutant applied; tell whether they pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            made = shutil.copytree if source.is_dir() else shutil.copy
            made(source, copy / name)
        if mutant:
            path = copy / mutant.file
            text = path.read_text(encoding="utf-8").replace(mutant.before, mutant.after, 1)
            path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-m", marked, tests]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=copy, env=environ, capture_output=True, check=False)
    if done.returncode == 5 and marked:  # no test has that mark
        return True
    if done.returncode not in (0, 1):
        raise ValueError(f"{mutant.name if mutant else tests}: pytest ended with {done.returncode}")
    return done.returncode == 0


def main() -> int:
    """Try the mutants, and print those that survive."""
    parser = argparse.ArgumentParser(description="Apply small changes, and run the tests.")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="", help="a part of the name of the file")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.file]
    if arguments.list:
        print(*(mutant.name for mutant in chosen), sep="\n")
        return 0
    for tests in sorted({mutant.tests for mutant in chosen}):
        if not run_tests(tests):  # then every mutant would seem to be killed
            raise ValueError(f"{tests} fails without a mutant")
    alive = []
    for mutant in chosen:
        lives = survives(mutant)
        print(f"{'SURVIVES' if lives else 'killed':<9} {mutant.name}", flush=True)
        alive += [mutant] if lives else []
    print(f"{len(chosen)} mutants, {len(alive)} survive")
    return int(len(alive) > MOST_SURVIVORS)


if __name__ == "__main__":
    sys.exit(main())

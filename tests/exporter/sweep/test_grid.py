"""The grid of a sweep: reading its file and its flags, and its cells."""

import pytest

from exporter.errors import GridError, UsageError
from exporter.sweep.grid import Grid, name_of, read_grid, words


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "sweep.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_every_combination_is_a_cell_and_the_last_axis_varies_fastest():
    grid = Grid({"engine": "none"}, {"attn": ["regular", "performer"], "res": [32, "32x48"]})
    assert grid.cells() == [
        {"attn": "regular", "res": 32},
        {"attn": "regular", "res": "32x48"},
        {"attn": "performer", "res": 32},
        {"attn": "performer", "res": "32x48"},
    ]
    assert grid.options(grid.cells()[1]) == {"engine": "none", "attn": "regular", "res": "32x48"}
    assert name_of(grid.cells()[1]) == "regular 32x48"


def test_without_axes_there_is_one_cell():
    assert Grid({"attn": "regular"}).cells() == [{}]


def test_placeholders_take_the_values_of_the_cell():
    base = {
        "checkpoint": "runs/{attn}-{dim-head}.pth",
        "video": ["{attn}.mp4"],
        "keep-fp32": r"a{2}",
    }
    grid = Grid(base, {"attn": ["regular"], "dim-head": [16]})
    options = grid.options(grid.cells()[0])
    assert options["checkpoint"] == "runs/regular-16.pth"
    assert options["video"] == ["regular.mp4"]
    assert options["keep-fp32"] == "a{2}"


@pytest.mark.parametrize("text", ['{"frames": 5}', '{"a": {"b": 1}}'])
def test_json_text_is_not_a_placeholder(text):
    assert Grid({"config": text}, {"attn": ["regular"]}).options({"attn": "regular"})["config"] == (
        text
    )


def test_placeholders_take_the_options_of_all_cells_too():
    grid = Grid({"checkpoint": "{attn}-{res}.pth", "attn": "regular"}, {"res": [32]})
    assert grid.options({"res": 32})["checkpoint"] == "regular-32.pth"


def test_an_unknown_placeholder_is_refused_with_the_nearest_name():
    grid = Grid({"checkpoint": "{atn}.pth"}, {"attn": ["regular"], "res": [32]})
    with pytest.raises(UsageError, match=r"\{atn\} stands for no .*did you mean \{attn\}"):
        grid.options(grid.cells()[0])


@pytest.mark.parametrize(
    ("base", "axes", "message"),
    [
        ({"attn": "regular"}, {"attn": ["regular"]}, "attn is an axis and an option"),
        ({}, {"attn": []}, "attn has no values"),
        ({}, {"res": [32, 64, 32]}, "res has a value twice"),
    ],
)
def test_a_contradictory_grid_is_refused(base, axes, message):
    with pytest.raises(UsageError, match=message):
        Grid(base, axes)


class TestFlags:
    def test_a_comma_list_makes_an_axis_and_one_value_an_option(self):
        grid = Grid().with_flags({"res": ["64, 128"], "attn": ["regular"], "dim": ["32", "64"]})
        assert grid.axes == {"res": ["64", "128"], "dim": ["32", "64"]}
        assert grid.base == {"attn": "regular"}

    def test_flags_replace_the_same_options_of_the_file(self):
        grid = Grid({"depth": 2, "dim": 64}, {"attn": ["regular", "performer"]})
        grid = grid.with_flags({"attn": ["fastformer"], "depth": ["1,2"]})
        assert grid == Grid({"dim": 64, "attn": "fastformer"}, {"depth": ["1", "2"]})

    def test_options_whose_values_have_commas_are_not_split(self):
        grid = Grid().with_flags({"config": ['{"a": 1, "b": 2}'], "video": ["a.mp4", "b,c.mp4"]})
        assert grid == Grid({"config": '{"a": 1, "b": 2}', "video": ["a.mp4", "b,c.mp4"]})


class TestFile:
    def test_gives_options_of_all_cells_and_axes(self, written):
        path = written('[base]\nbench_seconds = 0.5\n[axes]\nattn = ["regular"]\n"dim-head" = [8]')
        assert read_grid(path) == Grid(
            {"bench-seconds": 0.5}, {"attn": ["regular"], "dim-head": [8]}
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[base", "is not TOML"),
            (b"\xff\xfe", "is not TOML"),
            ("[axis]\nattn = ['regular']", r"axis: .*did you mean \[axes\]"),
            ("attn = 'regular'", "attn: expected a table"),
            ("[axes]\nattn = 'regular'", "attn in .axes.: got 'regular', expected a list"),
        ],
    )
    def test_with_wrong_content_is_an_error(self, written, text, message):
        with pytest.raises(GridError, match=message):
            read_grid(written(text))

    def test_that_is_missing_is_an_error(self, tmp_path):
        with pytest.raises(GridError, match=r"cannot read .*No such file"):
            read_grid(tmp_path / "none.toml")


def test_words_are_the_arguments_of_a_command_line():
    options = {"seed": -1, "mask": True, "video": ["a", "b"], "config": {"frames": 5}, "target": []}
    assert words(options) == [
        "--seed=-1",
        "--mask=true",
        "--video=a",
        "--video=b",
        '--config={"frames": 5}',
    ]

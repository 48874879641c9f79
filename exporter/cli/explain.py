"""`tsformer explain`: show where a model looked in a clip."""

from __future__ import annotations

from pathlib import Path

from exporter.cli.parsing import Flag, Output
from exporter.cli.terminal import show
from exporter.errors import UsageError


def explain(
    directory: Path,
    clip: Path,
    /,
    *,
    output: Output = None,
    device: str = "cpu",
    debug: Flag = False,
) -> int:
    """Show where a model looked in a clip, as PNG and HTML; needs no torch.

    The export must give attentions: tsformer export --outputs logits,attentions. The picture shows
    the attention rollout from the class token to the patches of every frame.

    Examples:
        tsformer explain build/attentions clip.mp4 -o build/where.png

    Args:
        directory: What tsformer export made, with the output attentions.
        clip: A video file.
        output: The PNG to write (default: the name of the clip, with -attention.png). A page with
            the same name and .html is written beside it.
        device: As in predict.
        debug: Show the trace of an error.
    """
    del debug
    picture = output or Path(f"{clip.stem}-attention.png")
    if picture.suffix != ".png":
        raise UsageError("--output", got=str(picture), expected="a path that ends in .png")
    from exporter.files.manifest import read_manifest
    from exporter.files.place import require_place, whole_file
    from exporter.predict import Predictor
    from exporter.predict.features import describe
    from exporter.predict.rollout import roll_out
    from exporter.report.attention import Explanation, write_explanation
    from exporter.run.sheets import as_shown

    require_place(picture)
    with Predictor(directory, device=device) as predictor:
        card = predictor.card
        if "attentions" not in card.outputs:
            raise UsageError(
                f"the export gives {', '.join(card.outputs)}, and no attentions",
                remedy="export with --outputs logits,attentions (regular attention)",
            )
        (found,) = describe(predictor, [clip])
        shares = roll_out(found.outputs["attentions"], read_manifest(directory)["model"])
        answer = ""
        if "logits" in found.outputs:
            best = predictor.rank(str(clip), found.outputs["logits"][None], 1)[0]
            answer = f"{best.label} ({best.score:.2f})"
    explanation = Explanation(
        clip.name,
        directory.absolute().name,
        answer,
        as_shown(found.video, card.preprocessing),
        shares,
        tuple(f"frame {index}" for index in found.indices),
    )
    page = picture.with_suffix(".html")
    with whole_file(picture) as drawn, whole_file(page) as written:
        write_explanation(explanation, drawn, written)
    for frame, part in zip(explanation.captions, explanation.of_frames, strict=True):
        show(f"{frame}: {100 * part:.1f} % of the attention")
    show(f"{picture}\n{page}")
    return 0

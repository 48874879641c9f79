"""The results of the scripts in peers/ -> the tables of the guide's page on speed."""

from __future__ import annotations

from typing import Any

from demo import ATTENTIONS
from pages import table

from exporter.report import ms, ratio, sci

# The graphs that are exported for OpenVINO in a precision, whatever that of the pair is.
FOR_OPENVINO = {"half": "bf16", "eight": "int8 and bf16"}
RATIO, SHARE = "ratio (95 % interval)", "share (95 % interval)"


def published_table(measured: dict[str, Any]) -> str:
    """How many times as fast as the published package, as Markdown."""
    rows = {(r["mechanism"], r["resolution"], r["batch"]): r for r in measured["rows"]}
    places = sorted({key[1:] for key in rows})
    ratios = [
        [f"{side} px, {batch}", *(ratio(rows[attn, side, batch]["ratio"]) for attn in ATTENTIONS)]
        for side, batch in places
    ]
    return table(["size, clips", *(f"`{attn}`" for attn in ATTENTIONS)], ratios) + where(measured)


def mechanisms_table(measured: dict[str, Any]) -> str:
    """One attention type against another, both as exported, as Markdown."""
    rows = [
        [
            str(row["resolution"]),
            f"`{row['mechanism']}`",
            f"{ms(row['ours_p50_ms'])} ms",
            f"`{row['peer'].partition('@')[2]}`",
            f"{ms(row['peer_p50_ms'])} ms",
            sure_ratio(row),
        ]
        for row in sorted(measured["rows"], key=lambda row: (row["mechanism"], row["resolution"]))
    ]
    headings = ["pixels", "`--attn`", "time", "against", "time", RATIO]
    return table(headings, rows) + where(measured)


def base_table(measured: dict[str, Any]) -> str:
    """The base model of Hugging Face against its peers, with errors, as Markdown."""
    latest = {(row["ours"], row["precision"], row["peer"]): row for row in measured["rows"]}
    rows = [
        [
            f"{ms(row['ours_p50_ms'])} ms, {ours_in_words(row)}",
            sci(row["ours_rel_l2"]),
            f"{ms(row['peer_p50_ms'])} ms, {in_words(row['peer'])}",
            sci(row["peer_rel_l2"]),
            sure_ratio(row),
        ]
        for row in latest.values()
        if row["status"] == "timed"
    ]
    return table(["tsformer", "error", "peer", "error", RATIO], rows) + where(measured)


def half_table(measured: dict[str, Any]) -> str:
    """The graphs for OpenVINO in bf16 and int8 against their peers, with errors, as Markdown."""
    rows = [
        [
            f"`{row['mechanism']}`",
            str(row["resolution"]),
            f"{ms(row['ours_p50_ms'])} ms, {ours_in_words(row)}",
            sci(row["ours_rel_l2"]),
            f"{ms(row['peer_p50_ms'])} ms, {in_words(row['peer'])}",
            sci(row["peer_rel_l2"]),
            sure_ratio(row),
        ]
        for row in sorted(measured["rows"], key=lambda row: row["resolution"])
        if row["status"] == "timed"
    ]
    headings = ["`--attn`", "pixels", "tsformer", "error", "peer", "error", RATIO]
    return table(headings, rows) + where(measured)


def ours_in_words(row: dict[str, Any]) -> str:
    """The runtime and the precision of our side of a row."""
    source, _, runtime = row["ours"].partition("/")
    if source in FOR_OPENVINO:
        return f"{runtime.partition('-')[0]} {FOR_OPENVINO[source]}"
    return f"{in_words(row['ours'])} {row['precision']}"


def in_words(side: str) -> str:
    """`plain/openvino` as `plain, openvino`, and what is meant by `ours` and `half`."""
    side = side.removeprefix("ours/").replace("half/openvino-bf16", "tsformer, openvino bf16")
    side = side.replace("/", ", ")
    return side.replace("unmatched", "torch.compile without its pattern matcher")


def peers_table(measured: dict[str, Any]) -> str:
    """Our better graph against the best of its peers, as Markdown."""
    rows = []
    for row in sorted(measured["closest"], key=lambda row: row["resolution"]):
        source, _, runtime = row["ours"].partition("/")
        runtime += ", uncut" if source == "uncut" else ""
        peer = row["peer"].replace("plain/", "plain export, ").replace("export, compile", "compile")
        rows.append(
            [
                f"`{row['mechanism']}`",
                str(row["resolution"]),
                f"{ms(row['ours_p50_ms'])} ms, {runtime}",
                f"{ms(row['peer_p50_ms'])} ms, {peer}",
                sure_ratio(row),
            ]
        )
    headings = ["`--attn`", "pixels", "tsformer, in", "best peer", RATIO]
    return table(headings, rows) + where(measured)


def limit_table(measured: dict[str, Any]) -> str:
    """How near the graphs are to their matrix products alone, as Markdown."""
    rows = [
        [
            f"`{row['mechanism']}`",
            str(row["resolution"]),
            row["side"].partition("/")[2],
            ms(row["p50_ms"]),
            ms(row["products_ms"]),
            f"{row['products_gflop_per_s']:.0f}",
            f"{row['share']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        ]
        for row in measured["rows"]
    ]
    headings = ["`--attn`", "pixels", "in", "run ms", "products ms", "GFLOP/s", SHARE]
    return table(headings, rows) + where(measured)


def sure_ratio(row: dict[str, Any]) -> str:
    """A ratio and its interval."""
    return f"{ratio(row['ratio'])} ({row['low']:.2f} to {row['high']:.2f})"


def where(measured: dict[str, Any]) -> str:
    """What a table was measured on: a paragraph to stand below it."""
    facts, threads = measured["environment"], measured["rows"][0]["threads"]
    packages = facts["packages"]
    days = sorted({row.get("date", facts["date"])[:10] for row in measured["rows"]})
    return (
        f"\nMedians of paired ratios, measured {' and '.join(days)} on {facts['cpu']} ({threads} "
        f"threads), torch {packages['torch']}, onnxruntime {packages['onnxruntime']}, openvino "
        f"{packages['openvino']}.\n"
    )

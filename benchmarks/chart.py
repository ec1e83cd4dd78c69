"""Draws docs/speed-light.svg and docs/speed-dark.svg, the README's picture, from a file of results: no library."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "cpu-amd-epyc-zen5-2-cores.json"
ROWS = {
    "uniform, float32, 8192 x 8192, 2 threads": "uniform, float32",
    "normal, float32, 8192 x 8192, 2 threads": "normal, float32",
    "normal, bfloat16, 8192 x 8192, 2 threads": "normal, bfloat16",
    "trunc_normal at 2 sigma, float32, 8192 x 8192, 2 threads": "trunc_normal, float32",
    "GPT-2 XL, float32, xavier_uniform, warm memory": "GPT-2 XL, whole model",
}
COLOURS = {  # text, what is faint, torch.nn.init, fastinit
    "light": ("#1f2328", "#59636e", "#afb8c1", "#0969da"),
    "dark": ("#f0f6fc", "#9198a1", "#545d68", "#4493f8"),
}
WIDTH, LEFT, RIGHT, ROW, BAR, TOP = 820, 170, 150, 46, 15, 62


def draw(results: Path, colours: tuple[str, str, str, str]) -> str:
    """The picture as SVG: two bars for each row, as long as the values that are written in a second."""
    text, faint, torch_colour, our_colour = colours
    data = json.loads(results.read_text(encoding="utf-8"))
    rates = {each["work"]: each["values_per_second"] for each in data["results"]}
    largest = max(rates[work]["fastinit"] for work in ROWS)
    height = TOP + ROW * len(ROWS) + 26
    machine = data["machine"]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="14" fill="{text}" role="img">',
        "<title>Millions of values a second: torch.nn.init and fastinit</title>",
        '<text x="0" y="18" font-size="16" font-weight="600">Millions of values a second; longer is faster</text>',
        f'<rect x="{LEFT}" y="33" width="12" height="12" fill="{torch_colour}"/>',
        f'<text x="{LEFT + 18}" y="44">torch.nn.init</text>',
        f'<rect x="{LEFT + 130}" y="33" width="12" height="12" fill="{our_colour}"/>',
        f'<text x="{LEFT + 148}" y="44">fastinit</text>',
    ]
    for at, (work, label) in enumerate(ROWS.items()):
        y = TOP + at * ROW
        theirs, ours = rates[work]["torch"], rates[work]["fastinit"]
        lines.append(f'<text x="{LEFT - 12}" y="{y + BAR + 6}" text-anchor="end">{label}</text>')
        said = (
            (theirs, torch_colour, f"{theirs / 1e6:,.0f}"),
            (ours, our_colour, f"{ours / 1e6:,.0f}: {ours / theirs:.0f} times"),
        )
        for which, (rate, colour, number) in enumerate(said):
            length = max(2.0, (WIDTH - LEFT - RIGHT) * rate / largest)
            top = y + which * (BAR + 1)
            lines.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
            lines.append(f'<text x="{LEFT + length + 8:.1f}" y="{top + 12}" font-size="13">{number}</text>')
    caption = f"{machine['processor']}; torch {machine['torch']}; benchmarks/results/{results.name}"
    lines.append(f'<text x="0" y="{height - 6}" font-size="12" fill="{faint}">{caption}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    for name, colours in COLOURS.items():
        path = HERE.parent / "docs" / f"speed-{name}.svg"
        path.write_text(draw(RESULTS, colours), encoding="utf-8")


if __name__ == "__main__":
    main()

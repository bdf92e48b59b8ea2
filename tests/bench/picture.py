"""build/bench.svg: the cost of a highstate over the number of envs, beside the alternatives."""

import itertools
import math

INK, GREY, LIGHT = "#222222", "#666666", "#dddddd"
SIDES = {  # name: (label, colour)
    "ours": ("cbsd_monit", "#0072b2"),
    "idiomatic": ("one file.managed per env", "#d55e00"),
    "floor": ("floor: only the writing", "#777777"),
}
TURNS = {"first": "first run", "second": "second run, nothing to do"}
SIZES = (10, 100, 1000)
WIDTH, HEIGHT = 960, 440
LEFT, TOP, WIDE, HIGH = 70, 70, 400, 290  # the plot with the lines
BARS = 600  # where the bars begin


def text(x, y, words, size=13, anchor="start", colour=INK, weight="normal"):
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" font-weight="{weight}">{words}</text>'


def line(x1, y1, x2, y2, colour=LIGHT, width=1, dashed=False):
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dash}/>'


def seconds(value):
    """A duration as a person reads it."""
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def lines(found):
    """Cost over envs, both axes logarithmic."""
    points = {}
    for side, turn in itertools.product(SIDES, TURNS):
        pairs = [(size, found.get(f"{side}_{turn}_s_{size}")) for size in SIZES]
        points[side, turn] = [(size, value) for size, value in pairs if value is not None]
    values = [max(y, 0.001) for series in points.values() for _, y in series]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    title = "Cost of a highstate over the number of envs, 3 checks each"
    what = "above salt-call test.ping, without the wait for monit"
    out = [text(LEFT - 40, TOP - 30, title, 15, weight="bold")]
    out.append(text(LEFT - 40, TOP - 12, what, 12, colour=GREY))

    def at(size, value):
        x = LEFT + WIDE * (math.log10(size) - 1) / 2
        return x, TOP + HIGH * (high - math.log10(max(value, 0.001))) / (high - low)

    for power in range(low, high + 1):
        _, y = at(10, 10**power)
        label = seconds(10**power).replace(".0", "")
        out += [line(LEFT, y, LEFT + WIDE, y), text(LEFT - 8, y + 4, label, 12, "end", GREY)]
    bottom = TOP + HIGH
    for size in SIZES:
        x, _ = at(size, 1)
        label = text(x, bottom + 18, f"{size:,} envs", 12, "middle", GREY)
        out += [line(x, TOP, x, bottom), label]
    for (side, turn), series in points.items():
        colour = SIDES[side][1]
        places = [at(*point) for point in series]
        for (x1, y1), (x2, y2) in zip(places, places[1:]):
            out.append(line(x1, y1, x2, y2, colour, 2.5, turn == "second"))
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
    x = LEFT
    for label, colour in SIDES.values():
        out.append(f'<circle cx="{x + 5}" cy="{bottom + 44}" r="5" fill="{colour}"/>')
        out.append(text(x + 16, bottom + 48, label))
        x += 34 + 7 * len(label)
    for number, (turn, label) in enumerate(TURNS.items()):
        x = LEFT + 130 * number
        out.append(line(x, bottom + 66, x + 28, bottom + 66, INK, 2, turn == "second"))
        out.append(text(x + 34, bottom + 70, label))
    return out


def bars(found):
    """The same with 1,000 envs, as bars, each run on a scale of its own."""
    out = [text(BARS - 30, TOP - 30, "1,000 envs", 15, weight="bold")]
    y = TOP
    for turn, label in TURNS.items():
        sides = [side for side in SIDES if f"{side}_{turn}_s_1000" in found]
        most = max(found[f"{side}_{turn}_s_1000"] for side in sides)
        out.append(text(BARS - 30, y, label, 13, weight="bold"))
        y += 14
        for side in sides:
            value = found[f"{side}_{turn}_s_1000"]
            name, colour = SIDES[side]
            length = 230 * value / most
            place = f'x="{BARS - 30}" y="{y}" width="{max(1, length):.1f}"'
            out.append(f'<rect {place} height="20" fill="{colour}"/>')
            words = seconds(value)
            if side == "idiomatic":
                words += f" = {found[f'{turn}_speedup_over_idiomatic_1000']:.1f} × ours"
            if side == "floor":
                words += f", ours is {found['first_vs_floor_1000']:.1f} × that"
            out += [text(BARS - 30, y + 35, f"{name}: {words}", 12, colour=GREY)]
            y += 50
        y += 22
    return out


def draw(found):
    """The picture as text, of the keys that ``converge`` measures."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 30}" '
        f'width="{WIDTH}" height="{HEIGHT + 30}" font-family="Helvetica, Arial, sans-serif">'
        '<rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *lines(found), *bars(found), "</svg>", ""])

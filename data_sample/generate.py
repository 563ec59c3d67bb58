# SPDX-License-Identifier: MIT
"""Draw the sample data: people with exact mattes, in the two kinds that Matte Label Blending mixes.

    matte/          D_m: a few cut-outs with exact mattes, and unrelated smooth backgrounds
    segmentation/   D_s: many natural pictures with coarse masks (mattes: to measure, upper bound)
    test/           natural pictures with exact mattes

Everything is drawn, hair by hair, at SCALE times the final size and averaged down: so every matte
is exact. D_m stands people in even studio light. In natural pictures person and scene share one
light, and the scene is full of what is easily taken for a person or for hair (posters, busts,
coats, mops, trees): D_m cannot teach those. The masks of D_s are a hurried annotator's polygons.
"""

import argparse
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageOps

SCALE = 4
ALONG = np.linspace(0, 1, 20)  # the points of a hair
SIZES = [(192, 240), (192, 192), (240, 192)]  # (width, height) of natural pictures in pixels


def colours(names):
    """Colours (N, 3) in 0..255 from their hexadecimal names."""
    return np.array([ImageColor.getrgb("#" + name) for name in names.split()])


PALETTES = [  # a wall, its skirting board, 4 accents
    colours("f0dfc8 faf3e6 c96f4a 2f6f73 e0a83e 2b3a55"),
    colours("b4c7aa f2efe6 3f5f4a b3553a d9c2a0 6b4257"),
    colours("b9cfdd f6f4f1 4c6a8d e5826a f0d27a 3d4656"),
    colours("cdc4dd f5efe8 6f5b8f d98a9e 9a9a66 34304a"),
    colours("c3ded0 f6d3bc 2f7d67 a8483a e3b05f 5d4237"),
    colours("d4d6d6 f7f3ee 43474d d95f4b 8fb8d4 f2dca0"),
]
SKINS = colours("f6d0b4 ebbc9b d6a07a b27a56 84563c 603e2e")
HAIRS = colours("2a2223 4a3326 6e4629 8c4e2a cea462 b0aca8 e2c48c")
GREENS = colours("588454 7a9652 b28046 4a705c")
WOODS = colours("b0845a 84563c 603e2e")
SHADOWS = ["#c6b7b4", "#ac9794", "#a08784"]  # what remains of white there
PAPERS = ["#f4dcc4", "#dce6ea", "#eae3c8"]


@dataclass
class Style:
    """How hair is worn."""

    share: float  # of all people
    thick: float  # how far it reaches from the middle of the head, in heights of the head
    hairs: int  # seen one by one, for each unit of outline
    length: float  # of one hair, in heights of the head
    lift: float  # how far it stands off, in radians
    curl: float = 0.0  # how far it swings to and fro, in radians


STYLES = {
    "shaved": Style(share=0.15, thick=0.42, hairs=8, length=0.06, lift=0.3),
    "short": Style(share=0.12, thick=0.45, hairs=35, length=0.16, lift=0.4),
    "tied": Style(share=0.14, thick=0.44, hairs=12, length=0.3, lift=0.2),
    "long": Style(share=0.35, thick=0.46, hairs=12, length=0.38, lift=0.2),
    "wavy": Style(share=0.11, thick=0.44, hairs=30, length=0.9, lift=0.4, curl=0.7),
    "curly": Style(share=0.13, thick=0.50, hairs=58, length=0.5, lift=1.2, curl=1.4),
}


def rounded(*corners):
    """Cut an outline's corners three times (Chaikin). Outlines are (N, 2), clockwise, y down."""
    outline = np.array(corners, float)
    for _ in range(3):
        after = np.roll(outline, -1, axis=0)
        cut = [0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after]
        outline = np.stack(cut, axis=1).reshape(-1, 2)
    return outline


def mirrored(*half):
    """The smooth outline whose right half runs down through these points."""
    left = [(-x, y) for x, y in reversed(half)]
    return rounded(*half, *left)


def limb(*joints, widths):
    """The smooth outline of a tube through the joints; `widths` are those of its two ends."""
    path = np.array(joints, float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal = along[:, ::-1] * (1, -1)
    side = normal * np.linspace(*widths, len(path))[:, None] / 2
    return rounded(*(path + side), *(path - side)[::-1])


def oval(x, y, across, down):
    """The outline of an ellipse with these radii."""
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return np.stack([x + across * np.cos(angle), y + down * np.sin(angle)], axis=1)


def walk(outline, step):
    """Points (N, 2) along a closed outline, one step apart."""
    closed = np.concatenate([outline, outline[:1]])
    lengths = np.linalg.norm(np.diff(closed, axis=0), axis=1)
    walked = np.concatenate([[0], np.cumsum(lengths)])
    at = np.arange(0, walked[-1], step)
    x = np.interp(at, walked, closed[:, 0])
    y = np.interp(at, walked, closed[:, 1])
    return np.stack([x, y], axis=1)


def polygon(image, points, colour):
    """Fill the polygon with these corners (N, 2)."""
    ImageDraw.Draw(image).polygon(points.ravel().tolist(), fill=colour)


@dataclass
class Pen:
    """Draws on an RGBA image SCALE times the final size, in units of `unit` around `origin`."""

    rng: np.random.Generator
    image: Image.Image
    light: tuple  # the direction (x, y) it comes from, and the colour of shadows
    origin: tuple = (0, 0)
    unit: float = SCALE  # in pixels of the image: a new pen's unit is a final pixel
    tilt: float = 0.0  # in radians
    outlines: list = field(default_factory=list)  # of all shapes so far, in final pixels

    def at(self, x, y, unit, tilt=0.0):
        """A pen for the same image, with its origin at (x, y) and its unit so many of ours."""
        origin = self.pixels((x, y))
        return replace(self, origin=origin, unit=self.unit * unit, tilt=tilt)

    def pixels(self, points):
        """Where points (..., 2) lie in the image."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return self.origin + self.unit * np.array(points) @ [[cos, sin], [-sin, cos]]

    def fill(self, outline, colour):
        """Fill an outline with one colour."""
        polygon(self.image, self.pixels(outline), tuple(np.int_(colour)))

    def shape(self, outline, paint):
        """Fill an outline, darker where it turns from the light, with a colour (3,) or with the
        colours (N, 3) of stripes from the top of the image to its foot."""
        points = self.pixels(outline)
        self.outlines.append(points / SCALE)
        width, height = self.image.size
        small = (width // SCALE, height // SCALE)  # one shade for each final pixel
        column = Image.fromarray(np.uint8(paint).reshape(-1, 1, 3))
        x, y, shadow = self.light
        depth = 0.12 * float(np.ptp(points, axis=0).min())
        lit = Image.new("L", small)
        polygon(lit, (points + depth * np.array([x, y])) / SCALE, 255)
        lit = lit.filter(ImageFilter.GaussianBlur(depth / SCALE))
        shade = ImageOps.colorize(lit, shadow, "white")
        shaded = ImageChops.multiply(column.resize(small, Image.NEAREST), shade)
        inside = Image.new("L", (width, height))
        polygon(inside, points, 255)
        self.image.paste(shaded.resize((width, height), Image.NEAREST), mask=inside)

    def hair(self, root, angle, length, colour, curl=0.0):
        """One hair, half a final pixel wide: it leaves its root at an angle, swings and hangs."""
        swing = curl * np.sin(14 * ALONG + self.rng.uniform(0, 6.3))
        bend = self.rng.normal(0.8 * math.cos(angle), 0.4)
        angles = angle + swing + bend * ALONG
        steps = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = root + np.cumsum(steps, axis=0) * length / len(ALONG)
        tone = np.clip(colour * self.rng.uniform(0.7, 1.35), 0, 255)
        line = self.pixels(points).ravel().tolist()
        ImageDraw.Draw(self.image).line(line, fill=tuple(np.int_(tone)), width=SCALE // 2)

    def tuft(self, outline, colour, style):
        """A mass of hair; single hairs run down along its outline, and some stand off."""
        self.shape(outline, colour)
        edge = walk(outline, 0.01)
        middle = edge.mean(axis=0)
        for _ in range(style.hairs * len(edge) // 100):
            i = self.rng.integers(len(edge))
            x, y = edge[i] - edge[i - 1]
            down = 1 if y > 0 else -1  # outlines run clockwise: on the left side up
            lift = self.rng.exponential(style.lift)
            angle = math.atan2(y * down, x * down) - down * lift
            length = style.length * self.rng.uniform(0.4, 1.2)
            root = middle + (edge[i] - middle) * self.rng.uniform(0.8, 1.0)
            self.hair(root, angle, length, colour, style.curl)


def cloth(rng):
    """A plain fabric's colour (3,), or the colours (N, 3) of a striped one."""
    first, second = rng.permutation(rng.choice(PALETTES))[:2]
    if rng.random() < 0.5:
        return first
    return np.tile([first, second], (rng.integers(10, 24), 1))


def hair_behind(pen, name, colour, reach):
    """The hair around the head, what is tied, and what hangs down to y = `reach`."""
    style = STYLES[name]
    pen.tuft(oval(0, -0.16, style.thick, style.thick), colour, style)
    if name == "tied":
        tail = limb(
            (0.2, -0.4),
            (0.6, -0.3),
            (0.7, 0.2),
            (0.6, reach),
            widths=(0.3, 0.15),
        )
        pen.tuft(tail, colour, style)
    if name in ("long", "wavy"):
        side = style.thick + 0.07
        curtain = mirrored(
            (0.25, -0.63),
            (style.thick, -0.4),
            (side, 0.0),
            (side, reach),
            (0.25, reach + 0.1),
        )
        pen.tuft(curtain, colour, style)


def body(pen, skin, top):
    """Torso and neck, and arms that hang, rest on the hip or are raised."""
    broad = pen.rng.uniform(0.82, 1.0)
    torso = mirrored(
        (0.2, 0.66),
        (0.52, 0.78),
        (broad, 0.95),
        (broad - 0.04, 1.35),
        (0.66, 2.0),
        (0.76, 2.7),
        (0.76, 7.0),
    )
    pen.shape(torso, top)
    neck = mirrored(
        (0.17, 0.3),
        (0.19, 0.64),
        (0.32, 0.74),
        (0.12, 1.0),
    )
    pen.shape(neck, skin * 0.85)
    poses = [
        [(1.02, 1.95), (0.98, 2.9)],
        [(1.42, 1.8), (0.74, 2.35)],
        [(1.36, 1.35), (1.28, 0.45)],
    ]
    for side in (-1, 1):
        elbow, wrist = pen.rng.choice(poses, p=[0.6, 0.25, 0.15]) * (side, 1)
        x, y = wrist + 0.2 * (wrist - elbow)
        pen.shape(oval(x, y, 0.14, 0.17), skin)
        shoulder = (side * (broad - 0.14), 1.06)
        pen.shape(limb(shoulder, elbow, wrist, widths=(0.36, 0.21)), top)


def face(pen, skin, hair):
    """Ears and head, eyes, brows, nose and a smile."""
    for x in (-0.4, 0.4):
        pen.shape(oval(x, 0.08, 0.07, 0.11), skin * 0.92)
    jaw = pen.rng.uniform(0.24, 0.31)
    head = mirrored(
        (0.25, -0.5),
        (0.4, -0.2),
        (0.38, 0.15),
        (jaw, 0.4),
        (0.1, 0.52),
    )
    pen.shape(head, skin)
    turn = pen.rng.uniform(-0.08, 0.08)
    for x in (turn - 0.155, turn + 0.155):
        pen.fill(oval(x, 0.045, 0.062, 0.038), (250, 247, 243))
        pen.fill(oval(x + 0.2 * turn, 0.04, 0.034, 0.038), (46, 34, 34))
        brow = limb(
            (x - 0.09, -0.06),
            (x, -0.1),
            (x + 0.09, -0.06),
            widths=(0.035, 0.035),
        )
        pen.fill(brow, hair * 0.6)
    pen.fill(oval(turn, 0.17, 0.045, 0.03), skin * 0.86)
    smile = limb(
        (turn - 0.12, 0.27),
        (turn, 0.36),
        (turn + 0.12, 0.27),
        widths=(0.04, 0.04),
    )
    pen.fill(smile, (160, 72, 70))


def hair_in_front(pen, name, colour, reach):
    """The hair on the head, and locks over the shoulders."""
    style = STYLES[name]
    cap = mirrored(
        (0.2, -0.2 - style.thick),
        (0.38, -0.02 - style.thick),
        (style.thick, -0.1),
        (0.4, 0.08),
        (0.36, -0.15),
        (0.2, -0.32),
    )
    pen.tuft(cap, colour, replace(style, length=0.15, lift=0.0))
    if name in ("long", "wavy"):
        for side in (-1, 1):
            end = (side * pen.rng.uniform(0.42, 0.56), reach)
            lock = limb(
                (side * 0.41, -0.12),
                (side * 0.47, 0.4),
                end,
                widths=(0.15, 0.24),
            )
            pen.tuft(lock, colour, replace(style, length=0.4, lift=0.1))


def person(pen):
    """One person, in units of the head's height; (0, 0) is the middle of the head."""
    rng = pen.rng
    tone = rng.integers(len(SKINS))
    skin = SKINS[tone]
    hair = HAIRS[rng.integers(7 if tone < 3 else 3)]
    name = rng.choice(list(STYLES), p=[style.share for style in STYLES.values()])
    reach = rng.uniform(0.6, 1.3)
    head = pen.at(0, 0, 1, tilt=rng.normal(0, 0.1))
    hair_behind(head, name, hair * 0.8, reach)
    body(pen, skin, cloth(rng))
    face(head, skin, hair)
    hair_in_front(head, name, hair, reach)


def likeness(pen):
    """A person in two colours: a poster on the wall or a bust on a pedestal."""
    unit = pen.unit
    drawn = Image.new("RGBA", (int(1.6 * unit), int(1.8 * unit)))
    person(Pen(pen.rng, drawn, pen.light, origin=(0.8 * unit, 0.85 * unit), unit=0.72 * unit))
    grey = ImageOps.autocontrast(drawn.convert("L"))
    inked = ImageOps.colorize(grey, "#443c3a", pen.rng.choice(PAPERS))
    mask = None
    if pen.rng.random() < 0.5:
        pen.shape(rounded((-0.8, -1.4), (0.8, -1.4), (0.6, 0.3), (-0.6, 0.3)), WOODS[0])
        mask = drawn
    corner = pen.pixels((-0.8, -3.1))
    pen.image.paste(inked, tuple(np.int_(corner)), mask)


def coat(pen):
    """A coat on a hook, with a fur collar."""
    fabric = cloth(pen.rng)
    for side in (-0.7, 0.7):
        sleeve = limb(
            (0.6 * side, -3.0),
            (side, -2.3),
            (side, -1.4),
            widths=(0.3, 0.3),
        )
        pen.shape(sleeve, fabric)
    pen.shape(mirrored((0.1, -3.3), (0.65, -3.0), (0.55, -1.0)), fabric)
    pen.tuft(oval(0, -3.1, 0.35, 0.14), pen.rng.choice(HAIRS), STYLES["short"])


def mop(pen):
    """A mop that stands on its stick."""
    pen.shape(limb((0, 0), (0, -2.6), widths=(0.1, 0.1)), WOODS[0])
    yarn = mirrored((0.15, -2.9), (0.4, -2.6), (0.4, -1.7))
    pen.tuft(yarn, pen.rng.choice(HAIRS), STYLES["wavy"])


def tree(pen):
    """A tree with twigs as fine as hair."""
    pen.shape(limb((0, 0), (0, -3.0), widths=(0.5, 0.3)), pen.rng.choice(WOODS))
    green = pen.rng.choice(GREENS)
    for x, y in [(-0.8, -2.8), (0.8, -2.9), (0, -3.5)]:
        pen.tuft(oval(x, y, 0.9, 0.8), green * pen.rng.uniform(0.85, 1.1), STYLES["wavy"])


def scene(rng, width, height, light):
    """A room or a garden, with a far and a near thing at its sides: RGBA of the final size."""
    pen = new_pen(rng, width, height, light)
    wall, board = rng.choice(PALETTES)[:2]
    ground = int(height * rng.uniform(0.74, 0.86))
    green = rng.choice(GREENS)
    indoors = rng.random() < 0.6
    floor = rng.choice(WOODS) if indoors else green
    for top, colour in [(0, wall), (ground - 4, board), (ground, floor)]:
        below = (0, top * SCALE, width * SCALE, height * SCALE)
        pen.image.paste(tuple(colour), below)
    if not indoors:
        for _ in range(300):
            root = rng.uniform((0, ground), (width, height + 9))
            pen.hair(root, rng.normal(-1.57, 0.3), rng.uniform(3, 25), green)
    for nearer in (0.0, 0.1):
        x = width * rng.choice([rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)])
        unit = rng.uniform(0.16, 0.28) * min(width, height)
        thing = rng.choice([likeness, coat if indoors else tree, mop], p=[0.4, 0.4, 0.2])
        thing(pen.at(x, ground + nearer * height, unit))
    return pen.image.reduce(SCALE)


def new_pen(rng, width, height, light):
    """A pen for a clear picture of this final size."""
    return Pen(rng, Image.new("RGBA", (width * SCALE, height * SCALE)), light)


def portrait(rng, width, height, light):
    """A person in the middle of a clear picture: RGBA of the final size, the outlines drawn."""
    pen = new_pen(rng, width, height, light)
    unit = rng.uniform(0.30, 0.44) * min(height, 1.1 * width)
    x = width * rng.uniform(0.35, 0.65)
    y = height * rng.uniform(0.08, 0.15) + 0.70 * unit
    person(pen.at(x, y, unit))
    # BILINEAR averages over two final pixels, weighing the near ones more: as crisp as a camera
    return pen.image.resize((width, height), Image.BILINEAR), pen.outlines


def backdrop(rng, size=(240, 240)):
    """A smooth background with nothing in it: two colours in clouds."""
    palette = rng.permutation(rng.choice(PALETTES))
    first, second = (Image.new("RGB", size, tuple(colour)) for colour in palette[:2])
    count = rng.integers(3, 9)
    noise = np.uint8(rng.uniform(0, 255, (count, count)))
    cloud = Image.fromarray(noise).resize(size, Image.BICUBIC)
    return {"background": Image.composite(first, second, cloud)}


def cutout(rng):
    """A studio shot in even light: colours, continued beyond the outline, and the matte."""
    drawn, _ = portrait(rng, *SIZES[0], light=(0.0, -1.0, "#d8ccc8"))
    colour = Image.new("RGB", drawn.size)
    for factor in (256, 32, 8, 4, 2, 1):  # ever finer averages, where there is a colour
        average = drawn.reduce(factor).resize(drawn.size, Image.BILINEAR)
        known = average.getchannel("A").point(lambda alpha: min(8 * alpha, 255))
        colour.paste(average, mask=known)
    return {"foreground": colour, "alpha": drawn.getchannel("A")}


def photograph(rng):
    """A natural picture, its matte and its coarse mask: person and scene share one light."""
    width, height = rng.choice(SIZES).tolist()
    light = (rng.uniform(-0.8, 0.8), -0.6, rng.choice(SHADOWS))
    drawn, outlines = portrait(rng, width, height, light)
    blur = ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))
    picture = scene(rng, width, height, light).filter(blur)
    picture.alpha_composite(drawn)

    # The light of the place tints both alike; then the camera adds its noise
    tint = rng.uniform(0.9, 1.1) + rng.uniform(-0.5, 1) * np.array((0.08, 0.01, -0.1))
    pixels = np.array(picture.convert("RGB")) * tint
    pixels += rng.normal(0, 2.5, pixels.shape)
    return {
        "image": Image.fromarray(np.uint8(np.clip(pixels, 0, 255))),
        "alpha": drawn.getchannel("A"),
        "mask": coarse_mask(rng, drawn.size, outlines),
    }


def coarse_mask(rng, size, outlines):
    """What a hurried annotator clicks: outlines without single hairs, in segments of 10 to 16
    pixels between clicks that miss by about a pixel."""
    mask = Image.new("L", size)
    for outline in outlines:
        clicks = walk(outline, rng.uniform(10, 16))
        polygon(mask, clicks + rng.normal(0, 1.2, clicks.shape), 255)
    return mask


SPLITS = [  # folder, what draws its pictures, how often
    ("matte", cutout, 30),
    ("matte", backdrop, 24),
    ("segmentation", photograph, 120),
    ("test", photograph, 128),
]


def main():
    """Write all pictures, each a function of the seed, the split and its index alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split, (part, draw, count) in enumerate(SPLITS):
        for index in range(count):
            pictures = draw(np.random.default_rng([args.seed, split, index]))
            if part == "test":
                del pictures["mask"]
            for name, picture in pictures.items():
                suffix = "jpg" if picture.mode == "RGB" else "png"
                path = args.folder / part / name / f"{index:03d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path, quality=86, optimize=True)


if __name__ == "__main__":
    main()

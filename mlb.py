#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Matte Label Blending (MLB): weakly semi-supervised human matting in one file, to read beside
Kim, Yi, Yu, Yoo, Hwang: Towards Label-Efficient Human Matting (arXiv 2404.00921).

A few composites with exact mattes (D_m) train a teacher. Many natural photos with cheap, coarse
masks (D_s) then train a real-time student, whose labels take semantics from the mask and hair
from the teacher:

    M       matte label, in [0, 1]          α       its boundary: 1 where 0.05 < M < 0.95, else 0
    M′, α′  the teacher's two outputs       S       segmentation label, 0 or 1, hair cut off
    B       blended label: α′·M′ + (1 − α′)·S

    python mlb.py train      trains both, prints a table, draws runs/mlb/panel.png (see README.md)
    python mlb.py compare    shows that it is the blending which helps

Deviations. The paper's text was not at hand: the formulas of α and B are our reading of summaries.
Where we knew nothing the choice is ours: the network, the losses and their weights, augmentation,
an α′ that is soft but sharpened (see maps), a student that starts from its teacher's weights, sees
D_m too (the dataset mixer) and learns the boundary of B. One extension, off by default: band.
"""
import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import os
import pathlib
import platform
import signal
import sys
import time
import warnings
from concurrent import futures

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from torch import distributed, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode


class UserError(Exception):
    """What the user can put right: main says it in one line and exits with status 2."""


@functools.cache
def note(text):
    """One line on standard error that is no error, said once by each process."""
    print("mlb: note: " + text.replace("\n", "\\n"), file=sys.stderr, flush=True)


# ======================================================================================
# 1  Data: folders to pairs, decoding, compositing, augmentation, the dataset mixer
# ======================================================================================
# A data set is what lies in folders: a photo and its label share a name. Every file comes through
# one decoder, read, and every match through pairs. A training sample is then either a composite,
# made on the fly from a cut-out and any background, or a natural photo with its mask. Composites
# have exact mattes but are unnatural pictures: light, noise and clutter narrow that domain gap.

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LEAST_SIDE, MOST_ASPECT = 16, 16  # pictures smaller or thinner than this hold no person


def pictures(folder):
    """Picture files below folder, as sorted paths relative to it, without strays (._x.jpg).

    Raises UserError where there is no such folder, or nothing in it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name another one (see --help)")
    found = [pathlib.Path(root, name).relative_to(folder) for root, _, names in os.walk(folder)
             for name in names if pathlib.Path(name).suffix.lower() in SUFFIXES]
    found = sorted(p for p in found if not p.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: no pictures in this folder; name another one (see --help)")
    return found


def pairs(first, second):
    """Pairs the pictures of two folders by relative path without suffix: [(path, path), ...].

    Folder names that only one side has do not count, so that AISegment's
    clip_img/18/clip_0/x.jpg meets matting/18/matting_0/x.png. Pictures that find no partner are
    counted on standard error; that none finds one is an error.
    """
    folders = pathlib.Path(first), pathlib.Path(second)
    listed = [pictures(folder) for folder in folders]
    shared = set.intersection(*({part for p in side for part in p.parent.parts} for side in listed))
    keyed = ({}, {})
    for folder, side, paths in zip(folders, listed, keyed):
        for p in side:
            key = (*(part for part in p.parent.parts if part in shared), p.stem)
            if key in paths:
                raise UserError(f"{folder / p}: pairs by the same name as {paths[key]}; rename one")
            paths[key] = folder / p
    both = sorted(keyed[0].keys() & keyed[1].keys())
    if not both:
        raise UserError(f"{first}: no picture has a partner of the same name in {second}")
    alone = [paths[key] for paths in keyed for key in sorted(paths.keys() - set(both))]
    if alone:
        note(f"{len(alone)} pictures have no partner and are left out: "
             f"{', '.join(map(str, alone[:3]))}{' ...' if alone[3:] else ''}")
    return [(keyed[0][key], keyed[1][key]) for key in both]


@contextlib.contextmanager
def opened(path):
    """An opened picture, header read; whatever goes wrong with the file is said in one line."""
    try:
        if not os.path.isfile(path):  # a pipe would hang, a link in a circle never ends
            raise UserError(f"{path}: not a file that can be read; replace it or take it out")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if min(image.size) < LEAST_SIDE or max(image.size) > MOST_ASPECT * min(image.size):
                    raise UserError(f"{path}: {image.width}x{image.height} pixels are too few or "
                                    f"too thin to hold a person; take it out")
                yield image
    except UserError:
        raise
    except Exception as problem:  # decoders raise what they like on a hostile file
        raise UserError(f"{path}: not a picture that can be decoded ({problem}); "
                        "replace it or take it out") from problem


def size_of(path):
    """(width, height) in pixels of a picture as one looks at it, from its header alone.

    Raises UserError, as opened does.
    """
    with opened(path) as image:
        # of a PNG without EXIF getexif would decode all of it
        known = image.format != "PNG" or "exif" in image.info
        turned = known and image.getexif().get(0x0112, 1) >= 5
        return image.size[::-1] if turned else image.size


def read(path, label=False, short=0):
    """Decodes a picture upright: every file comes through here.

    A photo becomes an RGB image (its transparency, if any, is ignored), a label (matte or mask)
    an L image with 0 for background and 255 for the person. short: the short side, in pixels,
    that is enough for the caller; JPEG files then decode at 1/2, 1/4 or 1/8, faster, and no
    picture stays in memory at more than twice of what is asked.
    Raises UserError for whatever can't be decoded, naming the file.
    """
    with opened(path) as image:
        if short:
            image.draft(None, (math.ceil(short), math.ceil(short)))
        icc = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # in place: a copy of a large photo costs
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = Image.fromarray((np.asarray(image, np.int64) >> 8).astype(np.uint8))
        opaque = "A" not in image.getbands() or image.getchannel("A").getextrema()[0] == 255
        if not label and not opaque:
            note(f"{pathlib.Path(path).parent}: photos with transparency; it is ignored")
        if label and not opaque:  # AISegment: the matte is the alpha channel
            image = image.getchannel("A")
        elif label and image.mode == "P" and np.ptp(np.asarray(image.convert("RGB")), axis=2).any():
            # the colours of a palette are names, not values: any but the first is the person
            image = Image.fromarray(np.uint8(255) * (np.asarray(image) > 0))
        elif image.mode != ("L" if label else "RGB"):
            image = image.convert("L" if label else "RGB")
        if label and image.getextrema()[1] == 1:  # a mask of 0 and 1
            image = image.point(lambda value: 255 * value)
        if short and min(image.size) >= 2 * short:  # a large PNG; JPEG files are small by now
            image = image.reduce(int(min(image.size) / short))
        image.info = {"icc_profile": icc} if icc else {}
        return image


def to_bytes(image):
    """An RGB, RGBA or L picture as a tensor of bytes, C×H×W; as in memory, channels last."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def to_tensor(image):
    """An RGB or L picture as a float tensor, 3×H×W or 1×H×W, in [0, 1]."""
    return to_bytes(image) / 255


def to_picture(x):
    """A tensor 3×H×W or 1×H×W in [0, 1] as an RGB or L picture."""
    array = (x.clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


FOLDERS = {  # option: (its place below --data, what it holds)
    "foreground": ("matte/foreground", "D_m: colours of the cut-outs, or whole photos"),
    "alpha": ("matte/alpha", "D_m: their mattes"),
    "background": ("matte/background", "D_m: backgrounds (none: leave the photos as they are)"),
    "seg_image": ("segmentation/image", "D_s: natural photos"),
    "seg_mask": ("segmentation/mask", "D_s: their masks"),
    "seg_alpha": ("segmentation/alpha", "D_s: their true mattes, for the upper bound only"),
    "test_image": ("test/image", "test photos"),
    "test_alpha": ("test/alpha", "test mattes"),
}


def folder_of(o, name):
    """The folder that an option names, or its place below --data."""
    return pathlib.Path(getattr(o, name) or pathlib.Path(o.data, FOLDERS[name][0]))


def checked(first, second):
    """The pairs of two folders, their sizes compared by the headers: better known before step 1."""
    found = pairs(first, second)
    for image, label in found:
        a, b = size_of(image), size_of(label)
        if a != b:
            raise UserError(f"{label}: {b[0]}x{b[1]} pixels, but its partner {image} has "
                            f"{a[0]}x{a[1]}; a pair needs one size")
    return found


def open_data(o):
    """The data set of the options -> (composites, backgrounds, naturals, tests), lists of paths.

    Raises UserError for what is missing or does not fit, before any time is spent on training.
    """
    composites = checked(folder_of(o, "foreground"), folder_of(o, "alpha"))
    behind = folder_of(o, "background")
    backgrounds = [] if o.background == "none" else [behind / name for name in pictures(behind)]
    for path in backgrounds:
        size_of(path)
    naturals = checked(folder_of(o, "seg_image"), folder_of(o, "seg_mask"))
    tests = checked(folder_of(o, "test_image"), folder_of(o, "test_alpha"))
    for photo, truth in tests:  # a damaged one would spoil the end of a long run
        read(photo)
        read(truth, label=True)
    if rank_and_ranks()[0] == 0:
        print(f"D_m: {len(composites)} mattes, {len(backgrounds)} backgrounds; "
              f"D_s: {len(naturals)} masks; test: {len(tests)} pictures", flush=True)
    return composites, backgrounds, naturals, tests


SMALLEST_WINDOW = 0.7  # a training picture shows at least this share of a photo's short side
REMEMBERED = 160  # pairs and backgrounds: so few are decoded once, more at every use


def read_pair(photo, label=None, short=0):
    """A photo as bytes C×H×W, see read; its label, if any, is the fourth channel."""
    image = read(photo, short=short)
    if label:  # a JPEG and a PNG may come at different sizes
        image.putalpha(read(label, True, short).resize(image.size))
    return to_bytes(image)


read_once = functools.lru_cache(REMEMBERED)(read_pair)


def composite(foreground, alpha, background):
    """The compositing equation I = αF + (1 − α)B (Porter & Duff 1984), for arrays that broadcast.

    α in [0, 1] is the matte and B the background here, in the letters of matting; section 3 takes
    the paper's. F and B share a range.
    """
    return alpha * foreground + (1 - alpha) * background


def degrade(image, rng):
    """An image 3×H×W in [0, 1] out of focus, under other light, with a sensor's noise."""
    if rng.random() < 0.3:
        soft = F.interpolate(F.avg_pool2d(image[None], 2), image.shape[1:], mode="bilinear")[0]
        image = image.lerp(soft, rng.random())
    curve, tint = rng.uniform(-0.3, 0.3), rng.uniform(0.95, 1.05, (3, 1, 1))
    gain = torch.from_numpy(rng.uniform(0.85, 1.15) * tint).float()
    image = gain * image * (1 + curve - curve * image)  # a parabola: nearly gamma, quick
    if rng.random() < 0.3:
        noise = torch.from_numpy(rng.random(image.shape, np.float32))
        image += rng.uniform(0, 0.15) * (noise - 0.5)
    return image.clamp(0, 1)


def clutter(background, rng):
    """A background, bytes 3×H×W, with shapes drawn on it: before plain ones a teacher learns that
    whatever has an edge is a person, and whatever has hair."""
    background = Image.merge("RGB", [Image.fromarray(x) for x in background.numpy()])
    draw, count = ImageDraw.Draw(background), rng.integers(1, 8)
    colours, kinds = rng.integers(0, 256, (count, 3)).tolist(), rng.integers(4, size=count)
    places, sides = (background.width * rng.uniform(low, high, (count, 2))
                     for low, high in ((-0.2, 1), (0.05, 0.6)))
    for kind, colour, (x, y), (w, h) in zip(kinds, map(tuple, colours), places, sides):
        if kind == 0:
            draw.ellipse([x, y, x + w, y + h], colour)
        elif kind == 1:
            draw.rectangle([x, y, x + w, y + h], colour)
        elif kind == 2:  # a twig
            points = rng.uniform([x, y], [x + w, y + h], (rng.integers(3, 20), 2))
            draw.line(points.ravel().tolist(), colour, int(rng.integers(1, 4)))
        else:  # a ball of fur: 60 tips, and 60 points between them that reach less far
            angle, reach = np.linspace(0, 2 * np.pi, 120), rng.uniform(0.3, 60 * [0.4, 0.7])
            points = np.stack([x + w / 2 + w * reach * np.cos(angle),
                               y + h / 2 + h * reach * np.sin(angle)], 1)
            draw.polygon(points.ravel().tolist(), colour)
    return to_bytes(background).contiguous()  # plane by plane, as the rest of a sample lies


class Mixer(torch.utils.data.Dataset):
    """The dataset mixer: composites (D_m) and natural photos (D_s), drawn at random without end.

    Sample i is a pure function of (seed, i): its source, files and augmentation. So a run resumes
    exactly, workers change nothing, and ranks share by taking every n-th index.

    composites: (foreground, alpha) paths; backgrounds: paths, or none to leave the photos as they
    are; naturals: (photo, label) paths; mix: the share of composites in [0, 1]; size: in pixels.
    """

    def __init__(self, composites, backgrounds, naturals, mix, size, seed=0):
        self.composites, self.backgrounds, self.naturals = composites, backgrounds, naturals
        self.mix, self.size, self.seed = mix, size, seed
        self.few = len(composites) + len(backgrounds) + len(naturals) <= REMEMBERED

    def __getitem__(self, i):
        """-> {"image" and "target" (M or S), C×size×size, "natural": bool, "damaged": text}.

        Another draw takes the place of a file that can't be read; "damaged" holds the complaints,
        with \\0 between them. Ten in a row raise UserError.
        """
        rng, damaged = np.random.default_rng((self.seed, i)), []
        while len(damaged) < 10:
            try:
                return {**self.draw(rng), "damaged": "\0".join(damaged)}
            except UserError as problem:
                damaged.append(str(problem))
        raise UserError(f"ten damaged files in a row, the last one {damaged[-1]}")

    def draw(self, rng):
        """One sample; its target is taken before light, blur and noise: a matte has none."""
        natural = bool(rng.random() >= self.mix)
        pair = self.cut(self.pick(self.naturals if natural else self.composites, rng), rng)
        image, M = pair[:3], pair[3:] / 255  # cut as one, so that they can't part
        if self.backgrounds and not natural:
            background = self.cut(self.pick(self.backgrounds, rng), rng)
            if rng.random() < 0.7:
                background = clutter(background, rng)
            image = composite(image, M, background)
        return {"image": degrade(image / 255, rng), "target": M, "natural": natural}

    def pick(self, items, rng):
        """One of the items, all equally likely, decoded about as large as a window needs it."""
        item = items[rng.integers(len(items))]
        paths = item if isinstance(item, tuple) else (item,)
        return (read_once if self.few else read_pair)(*paths, short=self.size / SMALLEST_WINDOW)

    def cut(self, image, rng):
        """What a random square of a picture shows, half of them mirrored: bytes C×size×size."""
        side = round(rng.uniform(SMALLEST_WINDOW, 1) * min(image.shape[1:]))
        top, left = rng.integers(np.array(image.shape[1:]) - side + 1).tolist()
        shown = image[None, :, top:top + side, left:left + side]
        # bytes with their channels last in memory: three times as fast as Pillow
        shown = F.interpolate(shown, (self.size,) * 2, mode="bilinear", antialias=True)[0]
        return shown.flip(-1) if rng.random() < 0.5 else shown


# ======================================================================================
# 2  Model: the compact real-time encoder-decoder
# ======================================================================================
# Speed is a matter of where the work is done: a layer at full resolution costs 16 times one of as
# many channels at a quarter of it. So nothing is computed at full resolution but the first and the
# last layer, and a matte is still predicted pixel by pixel.


def conv(inputs, outputs, stride=1, size=3):
    """Convolution, batch norm, ReLU: N×inputs×H×W -> N×outputs×H/stride×W/stride.

    No bias: batch norm has one. For inference the two fold into one convolution (see fold).
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, (size - stride + 1) // 2, bias=False),
        nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class MattingNet(nn.Module):
    """Images N×3×H×W in [0, 1] -> matte and boundary logits, N×1×H×W each; H, W multiples of 32.

    The encoder halves the sides down to 1/32 while it widens; the decoder comes back up and adds
    the encoder's maps. It is fast because full resolution is seen by two layers only: the stem
    turns 4×4 pixels into one cell, the head predicts the 4×4 pixels of a cell at once. Between
    them are plain 3×3 convolutions of 32 to 128 channels, near the peak of CPUs and GPUs.
    """

    def __init__(self, width=32):
        super().__init__()
        w = width
        self.down4 = conv(3, w, 4, 4)  # -8 % time, against pixel_unshuffle and a 3×3
        self.down8 = conv(w, 2 * w, 2)
        self.down16 = conv(2 * w, 3 * w, 2)  # no residual sum as deep32's: +11 % time, no better
        self.down32 = conv(3 * w, 4 * w, 2)
        self.deep32 = conv(4 * w, 4 * w)  # added to its input, as in He et al. (CVPR 2016)
        self.up32 = conv(4 * w, 3 * w)  # as wide as what it meets: no 1×1 laterals, -6 % time
        self.up16 = conv(3 * w, 2 * w)
        self.up8 = conv(2 * w, w)
        self.up4 = conv(w, w)
        self.head = nn.Conv2d(w, 2 * 16, 3, padding=1)

    def forward(self, images):
        if images.shape[-1] % 32 or images.shape[-2] % 32:
            raise ValueError(f"sides must be multiples of 32, not {tuple(images.shape[-2:])}")
        x4 = self.down4(images)                                  # N, w, H/4, W/4
        x8 = self.down8(x4)                                      # N, 2w, H/8, W/8
        x16 = self.down16(x8)                                    # N, 3w, H/16, W/16
        x32 = self.down32(x16)                                   # N, 4w, H/32, W/32
        x = self.up32(x32 + self.deep32(x32))
        x = self.up16(x16 + F.interpolate(x, scale_factor=2.0))  # nearest, not bilinear: -7 % time
        x = self.up8(x8 + F.interpolate(x, scale_factor=2.0))
        x = self.up4(x4 + F.interpolate(x, scale_factor=2.0))
        return F.pixel_shuffle(self.head(x), 4).split(1, 1)


# ======================================================================================
# 3  MLB: the heart, in the paper's letters (α is the boundary here, M the matte)
# ======================================================================================
# The field calls the matte α; in this section α is the boundary, as in the paper. A prime marks
# what the teacher says of a photo: M_t is M′, alpha_t is α′. Read boundary_label, maps and blend
# first: they are the method. The loss serves teacher and student, with M or B as the target.

# matte: semantics; laplacian: edges at every scale; detail: the matte at the boundary alone, each
# picture by its own share, 0 where it has none; boundary: the map α itself
WEIGHTS = {"matte": 1.0, "laplacian": 1.0, "detail": 1.0, "boundary": 1.0}


def boundary_label(M, low=0.05, high=0.95):
    """The boundary α of a matte M: 1 where low < M < high, else 0 (the paper's boundary label).

    M in [0, 1], of any shape; α has its shape and type. It says where detail is: hair, fur, blur.
    """
    return ((M > low) & (M < high)).to(M.dtype)


def edge_band(S, radius):
    """1 within radius pixels (in x and y) of the edge of the segmentation S, N×1×H×W, else 0."""
    S = (S > 0.5).float()

    def dilate(x):
        """The largest value of a square window: by rows, then columns, at the cost of two sides."""
        x = F.max_pool2d(x, (2 * radius + 1, 1), 1, (radius, 0))
        return F.max_pool2d(x, (1, 2 * radius + 1), 1, (0, radius))

    return dilate(S) * dilate(1 - S)


def maps(net, images):
    """What a network says of images: matte and boundary, N×1×H×W each in [0, 1].

    The boundary is sharpened, σ(2z − 1) of its logit z: in photos the teacher is a little in doubt
    everywhere, and plain σ(z) lets its doubts into the labels as a haze far from the person.
    """
    matte_logits, boundary_logits = net(images)
    return matte_logits.float().sigmoid(), (2 * boundary_logits.float() - 1).sigmoid()


def blend(M_t, alpha_t, S, band=None):
    """The label B = α′·M′ + (1 − α′)·S: semantics from the segmentation, hair from the teacher.

    M_t is the teacher's matte M′, alpha_t its boundary α′, S the segmentation; all N×1×H×W in
    [0, 1]. band is our extension, in pixels: α′ counts only so near to the edge of S, since
    elsewhere the teacher takes leaves and stripes for hair. None is the paper's formula.
    """
    if band is not None:
        alpha_t = alpha_t * edge_band(S, band)
    return alpha_t * M_t + (1 - alpha_t) * S


def laplacian_loss(prediction, target, levels=4):
    """Mean |difference| of two Laplacian pyramids, N×1×H×W: edges count at every scale.

    As in Hou & Liu (ICCV 2019), with box filters; each coarser level weighs twice as much.
    """
    difference = prediction - target  # the pyramid is linear: that of the difference will do
    total = 0
    for level in range(levels):
        coarse = F.avg_pool2d(difference, 2)
        fine = difference - F.interpolate(coarse, scale_factor=2, mode="nearest")
        total = total + 2 ** level * fine.abs().mean()
        difference = coarse
    return total / levels


def mlb_loss(matte_logits, boundary_logits, target, boundary):
    """The loss of either stage: named 0-d terms and their "total", weighted by WEIGHTS.

    All N×1×H×W; target, M or B, in [0, 1], boundary α in {0, 1}. Computed in fp32, whatever the
    logits are: a mean over a million pixels and the logarithm of a small chance need its digits.
    """
    # the two maps of a channels-last output interleave in memory: slow to read one by one
    matte_logits = matte_logits.float().contiguous()
    boundary_logits = boundary_logits.float().contiguous()
    target, boundary = target.float(), boundary.float()
    matte = matte_logits.sigmoid()
    error = (matte - target).abs()
    per_picture = (boundary * error).sum((1, 2, 3)) / boundary.sum((1, 2, 3)).clamp(min=1)
    terms = {
        "matte": F.binary_cross_entropy_with_logits(matte_logits, target),
        "laplacian": laplacian_loss(matte, target),
        "detail": per_picture.mean(),
        "boundary": F.binary_cross_entropy_with_logits(boundary_logits, boundary),
    }
    terms["total"] = sum(WEIGHTS[name] * term for name, term in terms.items())
    return terms


# ======================================================================================
# 4  Training: one loop for both stages
# ======================================================================================
# A stage is a mixer and a function that turns a batch into targets; all else is the same. The loop
# holds what a real run needs: mixed precision, several GPUs, exact resumption, checkpoints that are
# whole at any moment, and a stop by Ctrl-C between two steps.

KEEP_SECONDS = 30  # between two checkpoints
# options that may differ when a run goes on
FREE = {"command", "out", "resume", "seeds", "budget", "workers"}


def setup(o):
    """The device of --device, made ready; under torchrun, also joins this process to the others."""
    if o.device == "auto":
        o.device = "cuda" if torch.cuda.is_available() else "cpu"
    if o.device == "cuda":  # torchrun gives each of its processes a GPU
        o.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.empty(0, device=o.device).device
    except (RuntimeError, AssertionError) as problem:
        there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        raise UserError(f"--device {o.device}: not here; there is {', '.join(there)}") from problem
    if getattr(o, "amp", "") == "auto":
        o.amp = "fp16" if device.type == "cuda" else "off"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        o.device = "cuda"  # the current one: its number is no part of what a run is
        # training and bench keep to one size: try all kernels, keep the fastest
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # bench's yardstick in TF32, as convolutions are
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if o.command in ("train", "compare") and o.batch // ranks * (o.size // 32) == 1:
        raise UserError(f"--batch {o.batch}, --size {o.size}: batch norm can't tell a mean and a "
                        "spread from the one cell at 1/32; raise either")
    if ranks > 1:
        if o.command != "train":
            raise UserError(f"{o.command}: runs in one process; torchrun is for train")
        if o.batch % ranks:
            raise UserError(f"--batch {o.batch}: not a multiple of the {ranks} ranks; take one")
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def rank_and_ranks():
    """This process's number and how many there are: (0, 1) without torchrun."""
    alone = not distributed.is_initialized()
    return (0, 1) if alone else (distributed.get_rank(), distributed.get_world_size())


def new_net(o, device, teacher=None):
    """A network in its seed's initial state, or in its teacher's; in channels-last, the layout that
    convolutions of tensor cores and of oneDNN read without a transposition."""
    torch.manual_seed(o.seed)
    net = MattingNet(o.width)
    if teacher:
        net.load_state_dict(teacher.state_dict())
    return net.to(device, memory_format=torch.channels_last)


def train_step(net, batch, o, optimizer, scaler, teacher=None, make=blend):
    """Forward, backward and update on a batch of the mixer -> the loss terms, 0-d tensors.

    The targets are the mixer's, M or S; with a teacher make(M′, α′, S) for photos instead of S.
    """
    device = next(net.parameters()).device
    image = batch["image"].to(device, memory_format=torch.channels_last, non_blocking=True)
    target = batch["target"].to(device, non_blocking=True)
    natural = batch["natural"].to(device, non_blocking=True).view(-1, 1, 1, 1)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(o.amp)
    with torch.autocast(device.type, half, enabled=half is not None):
        if teacher:
            M_t, alpha_t = maps(teacher, image)
            target = torch.where(natural, make(M_t, alpha_t, target), target)
        matte_logits, boundary_logits = net(image)
    terms = mlb_loss(matte_logits, boundary_logits, target, boundary_label(target))
    optimizer.zero_grad()
    scaler.scale(terms["total"]).backward()
    scaler.unscale_(optimizer)  # the clipping below is meant for the true gradients
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)  # left out where fp16 overflowed; update then lowers the scale
    scaler.update()
    return terms


def undisturbed(_):
    """A process that loads data leaves Ctrl-C to the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(mixer, first, steps, o):
    """Batches first to steps − 1 of the mixer; every rank takes its share of each.

    Pinned memory makes the copy to a GPU faster.
    """
    rank, ranks = rank_and_ranks()
    batches = [range(k * o.batch + rank, (k + 1) * o.batch, ranks) for k in range(first, steps)]
    return torch.utils.data.DataLoader(mixer, batch_sampler=batches, num_workers=o.workers,
                                       worker_init_fn=undisturbed,
                                       pin_memory=o.device.startswith("cuda"))


def as_floats(terms, where):
    """The loss terms as floats, averaged over the ranks: the one wait for the device in a step.

    Raises UserError naming the term that is not finite: nothing learned after it would count.
    """
    values = torch.stack(list(terms.values())).detach()
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    floats = dict(zip(terms, values.tolist()))
    for name, value in floats.items():
        if not math.isfinite(value):
            raise UserError(f"{where}: the loss term {name} is {value}; train again with a lower "
                            "--lr or --amp off, in another --out")
    return floats


@contextlib.contextmanager
def patient():
    """Ctrl-C only adds to the list that this yields, so that no step is cut in half."""
    presses = []
    before = signal.signal(signal.SIGINT, lambda *_: presses.append(True))
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


def fit(stage, net, mixer, steps, o, teacher=None, make=blend, saved=None, observe=None):
    """Trains net on steps batches of the mixer: either stage, any device.

    teacher, make: see train_step; saved: the state to go on from. observe(row, last, state) is
    called after each step: loss terms and times, the last call or not, what makes a resume's state.
    """
    optimizer = torch.optim.AdamW(net.parameters(), o.lr, weight_decay=0.01, fused=True)
    # fp16 holds nothing below 6e-8: the scaler multiplies the loss so that gradients survive it
    scaler = torch.amp.GradScaler(o.device, enabled=o.amp == "fp16")
    parts = {"net": net, "optimizer": optimizer, "scaler": scaler}
    step, seconds = (saved["step"], saved["seconds"]) if saved else (0, 0.0)
    for name, part in parts.items() if saved else ():
        part.load_state_dict(saved[name])
    model = nn.parallel.DistributedDataParallel(net) if distributed.is_initialized() else net
    model = torch.compile(model) if o.compile else model
    net.train()
    with patient() as interrupted:
        clock = time.perf_counter()
        for batch in loader(mixer, step, steps, o):
            data_seconds = time.perf_counter() - clock
            # up in 20 steps, then down a cosine
            lr = o.lr * min((step + 1) / 20, (1 + math.cos(math.pi * step / steps)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = lr
            for complaint in filter(None, "\0".join(batch["damaged"]).split("\0")):
                note(f"{complaint}; another sample takes its place")
            terms = train_step(model, batch, o, optimizer, scaler, teacher, make)
            terms["stop"] = terms["total"].new_tensor(bool(interrupted))
            terms = as_floats(terms, f"{stage}, step {step + 1}")
            stop = terms.pop("stop") > 0  # pressed at any rank: all stop after the same step
            step, begun, clock = step + 1, clock, time.perf_counter()
            seconds += clock - begun
            row = {"stage": stage, "step": step, **terms, "lr": lr, "seconds": seconds,
                   "data_seconds": data_seconds, "step_seconds": clock - begun}
            if observe:
                observe(row, stop or step == steps, lambda: {
                    "stage": stage, "step": step, "seconds": seconds,
                    **{name: part.state_dict() for name, part in parts.items()}})
            if stop:
                raise KeyboardInterrupt


def watch(steps, log=None, keep=None):
    """An observe for fit: logs, saves now and then, shows progress and the time left."""
    spoken = kept = time.monotonic()

    def observe(row, last, state):
        """What fit calls after every step."""
        nonlocal spoken, kept
        now, terminal = time.monotonic(), sys.stdout.isatty()
        if log:
            if log.tell() == 0:
                log.write(",".join(row) + "\n")
            log.write(",".join(str(value) for value in row.values()) + "\n")
        if keep and (last or now - kept > KEEP_SECONDS):
            keep(state())
            kept = now
        if last or now - spoken > (0.2 if terminal else 10):
            rate, spoken = row["step"] / row["seconds"], now
            left = round((steps - row["step"]) / rate)
            print(f"{row['stage']:<20} step {row['step']:>5}/{steps}  loss {row['total']:.4f}  "
                  f"{rate:5.1f} steps/s  {left // 60}:{left % 60:02} left  ",
                  end="\r" if terminal and not last else "\n", flush=True)
    return observe


def save(state, path):
    """Writes a checkpoint (a dict) or text beside its place, then renames it: never half a file.

    Raises UserError where it can't be written, a full disk say; what was there before stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            if isinstance(state, str):
                file.write(state.encode())
            else:
                torch.save({"program": "mlb", **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as problem:  # torch tells of a full disk by either
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(f"{path}: can't be written ({str(problem).splitlines()[0]}); make room or "
                        "take another --out; what was there before is whole") from problem


def save_net(net, path, o):
    """Writes a network so that load_net finds all it needs in the file."""
    save({"net": net.state_dict(), "width": o.width, "size": o.size}, path)


def load(path):
    """A checkpoint as a dict; weights_only, since a pickle from a stranger may run any code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["program"] != "mlb":
            raise ValueError("it is of another program")
    except Exception as problem:  # a hostile file makes torch raise what it likes
        raise UserError(f"{path}: not a checkpoint of mlb.py ({type(problem).__name__}); "
                        "give a teacher.pt or student.pt") from problem
    return state


def load_net(path, device):
    """The network in a teacher.pt or student.pt, ready to use, and the size it was trained at.

    It is built as wide as the file says. Raises UserError for a file of anything else.
    """
    state = load(path)
    try:
        net = MattingNet(state["width"])
        net.load_state_dict(state["net"])
    except (KeyError, RuntimeError, TypeError) as problem:
        raise UserError(f"{path}: does not fit this MattingNet; give a teacher.pt or student.pt "
                        "of this version") from problem
    net = net.to(device, memory_format=torch.channels_last).eval()
    return net.requires_grad_(False), state["size"]  # it may teach, but learns no more


def make_folder(out):
    """The folder of --out, there from now on."""
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{out}: can't be made ({problem.strerror}); "
                        "take another --out") from problem
    return pathlib.Path(out)


def configuration(o, path=None, saved=None):
    """The options that make a run what it is; refused where saved, found in path, has others."""
    config = {name: value for name, value in vars(o).items() if name not in FREE}
    for name in config if saved is not None else ():
        if saved.get(name) != config[name]:
            raise UserError(f"{path}: that run has --{name.replace('_', '-')} {saved.get(name)}, "
                            f"not {config[name]}; give its own options or take another --out")
    return config


def train(o):
    """`mlb.py train`: the teacher, then the student, then how good both are on the test pictures"""
    device, first_rank = setup(o), rank_and_ranks()[0] == 0
    composites, backgrounds, naturals, tests = open_data(o)
    out, saved, done = make_folder(o.out), None, 0
    if (out / "last.pt").exists():
        if not o.resume:
            raise UserError(f"{out}: holds a run; go on with it by --resume or take another --out")
        saved = load(out / "last.pt")
        done = saved["step"] + (saved["stage"] == "student") * o.teacher_steps
    config = configuration(o, out / "last.pt", saved and saved["config"])
    log, nets = None, {}
    if first_rank:
        text = json.dumps({**config, "torch": torch.__version__}, indent=1)
        save(text + "\n", out / "config.json")
        old = (out / "log.csv").read_text().splitlines(True)[:done + 1] if done else []
        save("".join(old), out / "log.csv")  # what came after the checkpoint is done again
        log = open(out / "log.csv", "a", buffering=1)
    for stage, steps, mix in (("teacher", o.teacher_steps, 1.0), ("student", o.steps, o.mix)):
        teacher = nets.get("teacher")
        net = new_net(o, device, teacher)
        if saved and saved["stage"] == "student" and stage == "teacher":  # it is learned already
            net.load_state_dict(saved["teacher"])
        else:
            def keep(state):
                """Saves all that a resume needs; the teacher too, once there is a student."""
                weights = teacher.state_dict() if teacher else None
                save({**state, "teacher": weights, "config": config}, out / "last.pt")

            fit(stage, net, Mixer(composites, backgrounds, naturals, mix, o.size, o.seed), steps, o,
                teacher, functools.partial(blend, band=o.band), saved,
                watch(steps, log, keep) if first_rank else None)
            for buffer in net.buffers() if distributed.is_initialized() else ():
                distributed.broadcast(buffer, 0)  # each rank's batch norm saw its own pictures
            saved = None
        # eval: it teaches by its running statistics, not the batch's; and it learns no more
        nets[stage] = net.eval().requires_grad_(False)
    if first_rank:
        finish(o, out, nets, naturals, tests)


def finish(o, out, nets, naturals, tests):
    """What a run leaves: weights, metrics.json, the panel, a table."""
    for stage, net in nets.items():
        save_net(net, out / f"{stage}.pt", o)
    scores = {stage: evaluate(net, tests, o.size) for stage, net in nets.items()}
    save(json.dumps(scores, indent=1) + "\n", out / "metrics.json")
    train_panel(nets, naturals, tests[:4], o).save(out / "panel.png")
    print(table(["test pictures", *UNITS], [[name, *in_units(scores[name])] for name in scores]))
    rows = [line.split(",") for line in (out / "log.csv").read_text().splitlines()]
    data, steps = (sum(float(row[rows[0].index(name)]) for row in rows[1:])
                   for name in ("data_seconds", "step_seconds"))
    print(f"{steps:.0f} s of training, {100 * data / steps:.0f} % of them waiting for data\n"
          f"{out}: teacher.pt, student.pt, metrics.json, log.csv, and panel.png to look at")


# ======================================================================================
# 5  Evaluation: the field's five metrics, the boundary's MAD, the picture panel
# ======================================================================================
# The definitions behind published tables, computed at the label's own size. Matting's claims live
# in a few percent of the pixels, which MSE hardly sees: hence a MAD of the boundary alone.


def gradient(x):
    """|∇x| of an H×W array, H×W, by the first derivatives of a Gaussian with σ = 1.4 pixels.

    Rhemann et al. (CVPR 2009): a matte's edges should be as steep as the truth's, not only near it.
    """
    t = np.arange(-6, 7)
    smooth = np.exp(-0.5 * (t / 1.4) ** 2)
    smooth /= smooth.sum()
    slope = t / 1.4 ** 2 * smooth

    def along(x, kernel):
        """Correlates the columns with a kernel, mirroring at the border."""
        rows = np.pad(x, ((6, 6), (0, 0)), mode="symmetric")
        return sum(weight * rows[k:k + len(x)] for k, weight in enumerate(kernel))

    return np.hypot(along(along(x, slope).T, smooth).T, along(along(x, smooth).T, slope).T)


def largest_component(mask):
    """The largest 4-connected component of a boolean H×W mask; of equals the first in row order.

    Runs of a row are the nodes of a graph, runs that touch in neighbouring rows its edges; every
    round hooks roots to the smallest root that they touch, until none touches a smaller one.
    """
    wide = np.pad(mask, ((0, 0), (0, 1)))  # no run goes on in the next row
    begins = wide & ~np.pad(mask, ((0, 0), (1, 0)))
    run = np.cumsum(begins.ravel()).reshape(wide.shape) - 1
    touching = wide[:-1] & wide[1:]
    above, below = run[:-1][touching], run[1:][touching]
    root = np.arange(begins.sum())
    while (root[above] != root[below]).any():
        a, b = root[above], root[below]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root != root[root]).any():
            root = root[root]
    if not len(root):
        return mask
    label = root[run[:, :-1]]
    return mask & (label == np.bincount(label[mask]).argmax())


def connectivity(prediction, truth):
    """Conn = Σ|φ_p − φ_t| of two H×W arrays: what hangs together with what both are sure of.

    Rhemann et al. (CVPR 2009), as published tables compute it: thresholds 0, 0.1 ... 1.
    """
    connected = np.full(truth.shape, -1.0)  # the last threshold at which a pixel was connected
    for k in range(1, 11):
        both = (prediction >= k / 10) & (truth >= k / 10)
        if both.any():
            connected[(connected < 0) & ~largest_component(both)] = (k - 1) / 10
    connected[connected < 0] = 1

    distance = np.stack([prediction, truth]) - connected
    phi = 1 - distance * (distance >= 0.15)  # 1 where connected at its own value, else less
    return np.abs(phi[0] - phi[1]).sum()


def metrics(prediction, truth):
    """SAD, MSE, MAD, Grad and Conn of two H×W arrays in [0, 1], as P3M reports them: whole image,
    SAD and Conn in thousands, Grad in tens, MSE and MAD per pixel; and the MAD of the boundary,
    the pixels within 2 of 0.05 < truth < 0.95 (nan where there are none)."""
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"metrics: two H×W arrays, not {prediction.shape} and {truth.shape}")
    error = np.abs(prediction - truth)
    near = torch.from_numpy((truth > 0.05) & (truth < 0.95)).float()
    near = F.max_pool2d(near[None], 5, 1, 2)[0].bool().numpy()
    return {
        "SAD": error.sum() / 1000,
        "MSE": (error ** 2).mean(),
        "MAD": error.mean(),
        "Grad": ((gradient(prediction) - gradient(truth)) ** 2).sum() / 10,
        "Conn": connectivity(prediction, truth) / 1000,
        "Boundary MAD": error[near].mean() if near.any() else math.nan,
    }


def predict(net, photo, size=0):
    """Matte and boundary (see maps) of an RGB picture: 2×H×W in [0, 1] at the picture's own size.

    The network sees it with the short side scaled to size pixels (0: as it is), its aspect kept,
    the far edges repeated up to multiples of 32.
    """
    device = next(net.parameters()).device
    scale = size / min(photo.size) if size else 1
    width, height = (round(scale * side) for side in photo.size)
    image = to_tensor(photo.resize((width, height), Image.BILINEAR))[None].to(device)
    image = F.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")
    # benchmark off: photos differ in size, and cuDNN would try all its kernels on each new one
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
        found = torch.cat(maps(net, image.to(memory_format=torch.channels_last)), 1)
        found = found[..., :height, :width]
        return F.interpolate(found, photo.size[::-1], mode="bilinear", antialias=True)[0].cpu()


def mean_metrics(rows):
    """The mean of each metric over pictures; one without a boundary does not count for its MAD."""
    known = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in rows[0]}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def evaluate(net, tests, size):
    """Mean metrics of a network over (photo, matte) paths, at their own size; size: see predict.

    The network is one in eval mode: batch norm then uses what it learned, not this picture's mean.
    """
    return mean_metrics([metrics(predict(net, read(photo), size)[0],
                                 to_tensor(read(truth, label=True))[0]) for photo, truth in tests])


def evaluate_weights(o):
    """`mlb.py eval`: the metrics of trained weights on any pair of folders"""
    net, trained_at = load_net(o.weights, setup(o))
    tests = checked(folder_of(o, "test_image"), folder_of(o, "test_alpha"))
    score = in_units(evaluate(net, tests, o.size or trained_at))
    print(table([f"{len(tests)} pictures", *UNITS], [[o.weights, *score]]))


UNITS = ["SAD", "MSE e-3", "MAD e-3", "Grad", "Conn", "Boundary MAD e-3"]


def in_units(score):
    """The metrics in the units of UNITS."""
    return [(math.nan if value is None else value) * (1000 if name.endswith("e-3") else 1)
            for name, value in zip(UNITS, score.values())]


def table(head, rows):
    """A Markdown table with aligned columns; cells are text or numbers."""
    rows = [[x if isinstance(x, str) else f"{x:.2f}" for x in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join("| " + " | ".join([row[0].ljust(widths[0]), *(
        x.rjust(width) for x, width in zip(row[1:], widths[1:]))]) + " |" for row in rows)


def contact_sheet(bands, cell=176):
    """Pictures in rows under titles: bands of (titles, rows), a row of pictures or H×W tensors."""
    gap, head = 4, 22
    width = gap + max(len(titles) for titles, _ in bands) * (cell + gap)
    height = gap + sum(head + len(rows) * (cell + gap) for _, rows in bands)
    sheet, font, y = Image.new("RGB", (width, height), "white"), ImageFont.load_default(13), gap
    for titles, rows in bands:
        for k, title in enumerate(titles):
            place = gap + k * (cell + gap) + cell / 2, y + head / 2
            ImageDraw.Draw(sheet).text(place, title, "black", font, anchor="mm")
        y += head
        for row in rows:
            for k, picture in enumerate(row):
                if isinstance(picture, torch.Tensor):
                    picture = to_picture(picture[None])
                picture = ImageOps.pad(picture, (cell, cell), color="white")
                sheet.paste(picture, (gap + k * (cell + gap), y))
            y += cell + gap
    return sheet


def train_panel(nets, naturals, tests, o):
    """A sheet: how labels come about on photos of D_s, and what is made of test pictures."""
    labels, mattes = [], []
    for photo, mask in naturals:
        try:
            image, S = read(photo), to_tensor(read(mask, label=True))[None]
        except UserError:  # named already, while training
            continue
        M_t, alpha_t = predict(nets["teacher"], image, o.size)[:, None, None]
        B = blend(M_t, alpha_t, S, o.band)
        labels.append([image, S[0, 0], M_t[0, 0], alpha_t[0, 0], B[0, 0]])
        if len(labels) == 3:
            break
    for photo, truth in tests:
        image = read(photo)
        M_t, alpha_t = predict(nets["teacher"], image, o.size)
        M = predict(nets["student"], image, o.size)[0]
        mattes.append([image, M_t, alpha_t, M, read(truth, label=True)])
    return contact_sheet([
        (["natural photo", "segmentation S", "teacher M'", "teacher boundary", "label B"], labels),
        (["test picture", "teacher M'", "teacher boundary", "student", "truth"], mattes)])


# ======================================================================================
# 6  Comparison: the paper's claim in miniature
# ======================================================================================
# Is the blending what helps? Students differ in the share of composites and in the photos' labels
# alone; seeds tell a difference from an accident.

ROWS = {  # name: (share of D_m, None for --mix; what the natural photos of D_s are labelled with)
    "teacher": (1.0, None),
    "segmentation only": (0.0, "S"),
    "naive mix": (None, "S"),
    "pseudo-labels": (None, "M′"),
    "MLB (paper)": (None, "B"),
    "MLB + band": (None, "B + band"),
    "upper bound": (None, "true matte"),
}


def compare_row(name, o, data, truths, teacher):
    """Trains a row's network. Students differ in mix and labels alone: their initial state (the
    teacher's), steps, batch, augmentation and learning rate are the same."""
    composites, backgrounds, naturals, _ = data
    mix, kind = ROWS[name]
    mixer = Mixer(composites, backgrounds, truths if kind == "true matte" else naturals,
                  o.mix if mix is None else mix, o.size, o.seed)
    make = {"M′": lambda M_t, alpha_t, S: M_t, "B": blend,
            "B + band": functools.partial(blend, band=o.band)}.get(kind)
    net = new_net(o, torch.device(o.device), teacher)
    fit(f"{name}, {o.seed}", net, mixer, o.steps, o, make and teacher, make,
        observe=watch(o.steps))
    return net.eval()


def label_scores(teacher, o, naturals, truths):
    """How good the labels of D_s are themselves, at the size that the student sees them."""
    scores = {name: [] for name in ("S", "M′", "B", "B + band")}
    for (photo, mask), (_, truth) in zip(naturals, truths):
        try:
            photo, mask, truth = read(photo), read(mask, label=True), read(truth, label=True)
        except UserError as problem:
            note(f"{problem}; its label is not scored")
            continue
        size = [round(side * o.size / min(photo.size)) for side in photo.size]
        photo, mask, truth = (x.resize(size, Image.BILINEAR) for x in (photo, mask, truth))
        S, (M_t, alpha_t) = to_tensor(mask)[None], predict(teacher, photo)[:, None, None]
        for name, label in (("S", S), ("M′", M_t), ("B", blend(M_t, alpha_t, S)),
                            ("B + band", blend(M_t, alpha_t, S, o.band))):
            scores[name].append(metrics(label[0, 0], to_tensor(truth)[0]))
    return {f"labels {name}, {o.seed}": mean_metrics(rows) for name, rows in scores.items()}


def compare_table(scores, rows, seeds):
    """Mean ± standard deviation over the seeds and the share of the MSE gap closed, in Markdown."""
    figures = {name: np.array([in_units(scores[f"{name}, {seed}"]) for seed in range(seeds)])
               for name in rows}
    mse, lines = {name: each[:, 1].mean() for name, each in figures.items()}, []
    for name, each in figures.items():
        line = [name, *(f"{m:.1f} ± {s:.1f}" for m, s in zip(each.mean(0), each.std(0)))]
        if "upper bound" in rows:
            start = mse["segmentation only"]
            gap, closed = start - mse["upper bound"], start - mse[name]
            share = f"{100 * closed / gap:.0f} %" if gap > 0 else "no gap"
            line.append(share if name in ROWS else "")
        lines.append(line)
    return table(["student learns from", *UNITS, *["gap closed"] * ("upper bound" in rows)], lines)


def bars(names, means, spreads, width):
    """A bar chart with error bars as a picture width pixels wide."""
    chart = Image.new("RGB", (width, 26 * len(names) + 30), "white")
    draw, font, scale = ImageDraw.Draw(chart), ImageFont.load_default(13), 0.6 * width / max(means)
    draw.text((8, 6), "MSE e-3 on the test pictures: mean, standard deviation", "black", font)
    for k, (name, mean, spread) in enumerate(zip(names, means, spreads)):
        y, x, low, high = 30 + 26 * k, 0.2 * width, scale * (mean - spread), scale * (mean + spread)
        draw.text((x - 8, y + 9), name, "black", font, anchor="rm")
        draw.rectangle([x, y, x + scale * mean, y + 18], "#d98f4e" if "MLB" in name else "#8fa9c4")
        draw.line([x + low, y + 9, x + high, y + 9], "black", 2)
        draw.text((x + high + 6, y + 9), f"{mean:.1f}", "black", font, anchor="lm")
    return chart


def compare_pictures(out, o, rows, scores, tests):
    """A bar chart over the rows' mattes of three pictures that MLB does worst, and four others."""
    nets = {name: load_net(out / f"{name}, 0.pt", o.device)[0] for name in rows}
    errors = [evaluate(nets["MLB (paper)"], [pair], o.size)["MSE"] for pair in tests]
    order = np.argsort(errors)[::-1]
    lines = []
    for k in [*order[:3], *order[3::max(1, (len(order) - 3) // 4)][:4]]:
        photo, truth = read(tests[k][0]), read(tests[k][1], label=True)
        lines.append([photo, *(predict(net, photo, o.size)[0] for net in nets.values()), truth])
    sheet = contact_sheet([(["test picture", *rows, "truth"], lines)], cell=128)
    mse = [[1000 * scores[f"{name}, {seed}"]["MSE"] for seed in range(o.seeds)] for name in rows]
    chart = bars(rows, np.mean(mse, 1), np.std(mse, 1), sheet.width)
    both = Image.new("RGB", (sheet.width, sheet.height + chart.height), "white")
    both.paste(chart, (0, 0))
    both.paste(sheet, (0, chart.height))
    return both


def budget(o, data, once):
    """How many labels does it take? MLB with an eighth, a quarter, half and all of the mattes and
    of the masks -> the table and a chart."""
    composites, backgrounds, naturals, tests = data
    mattes, masks = (sorted({max(1, len(have) // part) for part in (8, 4, 2, 1)})
                     for have in (composites, naturals))
    mse = np.zeros((len(mattes), len(masks), o.seeds))
    for o.seed, (i, few) in itertools.product(range(o.seeds), enumerate(mattes)):
        less = composites[:few], backgrounds, naturals, tests
        teacher = once(f"teacher of {few} mattes, {o.seed}",
                       lambda: compare_row("teacher", o, less, None, None))[0]
        for j, many in enumerate(masks):
            less = composites[:few], backgrounds, naturals[:many], tests
            mse[i, j, o.seed] = 1000 * once(
                f"{few} mattes {many} masks, {o.seed}",
                lambda: compare_row("MLB (paper)", o, less, None, teacher))[1]["MSE"]
    mean, spread = mse.mean(2), mse.std(2)
    lines = [[f"{few} mattes", *(f"{m:.1f} ± {s:.1f}" for m, s in zip(*row))]
             for few, *row in zip(mattes, mean, spread)]
    names = [f"{few} mattes, {many} masks" for few in mattes for many in masks]
    return (table(["MSE e-3", *(f"{many} masks" for many in masks)], lines),
            bars(names, mean.ravel(), spread.ravel(), 720))


def read_scores(path, o):
    """The scores in the compare.json of an earlier call with the same options; {} without one."""
    if not path.exists():
        return {}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        scores = {key: {**row, "MSE": float(row["MSE"])} for key, row in state["scores"].items()}
        saved = dict(state["options"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UserError(f"{path}: not a whole compare.json of mlb.py; move it away") from problem
    configuration(o, path, saved)
    return scores


def compare(o):
    """`mlb.py compare`: what a student learns from composites, masks, pseudo-labels, and MLB"""
    device, data, rows, place = setup(o), open_data(o), list(ROWS), folder_of(o, "seg_alpha")
    truths = checked(folder_of(o, "seg_image"), place) if place.is_dir() else None
    if not truths:
        note(f"{place}: not there, so the upper bound and the gap are left out")
        rows.remove("upper bound")
    elif [photo for photo, _ in truths] != [photo for photo, _ in data[2]]:
        raise UserError(f"{place}: needs a matte for each photo that has a mask, and no other")
    out = make_folder(o.out)
    config, scores = configuration(o), read_scores(out / "compare.json", o)

    def once(key, make):
        """The network and scores of a training, done unless an earlier call did it."""
        if key not in scores or not (out / f"{key}.pt").exists():
            net = make()
            save_net(net, out / f"{key}.pt", o)
            scores[key] = evaluate(net, data[3], o.size)
            save(json.dumps({"options": config, "scores": scores}, indent=1), out / "compare.json")
        return load_net(out / f"{key}.pt", device)[0], scores[key]

    if o.budget:
        text, picture = budget(o, data, once)
    else:
        for o.seed, name in itertools.product(range(o.seeds), rows):  # new_net reads o.seed
            teacher = None if name == "teacher" else teacher
            net, _ = once(f"{name}, {o.seed}", lambda: compare_row(name, o, data, truths, teacher))
            teacher = teacher or net
            if truths and f"labels S, {o.seed}" not in scores:
                scores.update(label_scores(teacher, o, data[2], truths))
        labels = [f"labels {kind}" for kind in ("S", "M′", "B", "B + band") if truths]
        text = compare_table(scores, rows + labels, o.seeds)
        picture = compare_pictures(out, o, rows, scores, data[3])
    name = "budget" if o.budget else "compare"
    save(json.dumps({"options": config, "scores": scores}, indent=1), out / "compare.json")
    save(text + "\n", out / f"{name}.md")
    picture.save(out / f"{name}.png")
    print(f"{text}\n{out}: {name}.md, {name}.png, compare.json with every seed's figures, weights")


# ======================================================================================
# 7  Benchmark: frames per second, and what each step towards them buys
# ======================================================================================
# Rows are timed in turn, so that a slow moment of the machine hits all of them, and set against the
# rate of a plain matrix product on the same machine: what is left to gain?


def fold(net):
    """A copy with each batch norm folded into the convolution before it: the same function.

    In eval mode batch norm is a scale and a shift per channel, and so are a kernel and its bias.
    """
    net = copy.deepcopy(net)
    for block in [module for module in net.modules() if isinstance(module, nn.Sequential)]:
        for k in range(len(block) - 1):
            if isinstance(block[k + 1], nn.BatchNorm2d):
                block[k] = fuse_conv_bn_eval(block[k], block[k + 1])
                block[k + 1] = nn.Identity()
    return net


def captured(net, x):
    """net without Python between its kernels: a CUDA graph of this x; torch.compile on the CPU.

    A graph reads and writes the same memory at every replay: its output is overwritten by the next.
    """
    if not x.is_cuda:
        return torch.compile(net)
    for _ in range(3):  # libraries choose their kernels before the recording
        net(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = net(x)
    return lambda _: graph.replay() or y  # replay returns None


def seconds_of(run, device=None):
    """Seconds that a call takes. CUDA kernels run on after the launch: the clock waits for them."""
    sync = torch.cuda.synchronize if device and device.type == "cuda" else lambda: None
    sync()
    begun = time.perf_counter()
    run()
    sync()
    return time.perf_counter() - begun


def bench_rows(net, frames, device):
    """{row: a function of no argument -> matte logits or uint8 mattes}; each "+" adds one thing.

    End to end runs the faster of the rows before compilation.
    """
    half, name = (torch.float16, "fp16") if device.type == "cuda" else (torch.bfloat16, "bf16")
    x = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 255
    x_half, nchw = x.to(half), x.contiguous()
    nhwc = copy.deepcopy(net).to(memory_format=torch.channels_last)
    folded = fold(nhwc)
    light = copy.deepcopy(folded).to(half)

    rows = {"fp32": lambda: net(nchw)[0], "+ channels-last": lambda: nhwc(x)[0],
            "+ batch norm folded": lambda: folded(x)[0],
            # fp32 weights, cast for each operation that gains by it
            f"+ autocast {name}": torch.autocast(device.type, half)(lambda: folded(x)[0]),
            f"+ {name} weights": lambda: light(x_half)[0]}
    try:
        fast = captured(light, x_half)
        fast(x_half)
        rows["+ CUDA graph" if x.is_cuda else "+ torch.compile"] = lambda: fast(x_half)[0]
    except Exception as problem:  # without a C++ compiler torch.compile raises what it likes
        note(f"no compiled row: {type(problem).__name__}; on a CPU it needs a C++ compiler")
    # some CPUs compute 16 bits by way of 32: end to end takes what is faster here
    light_s, folded_s = (min(seconds_of(rows[row], device) for _ in range(5))
                         for row in (f"+ {name} weights", "+ batch norm folded"))
    best, kind = (folded, torch.float32) if light_s > folded_s else (light, half)

    def end_to_end():
        """What a video call pays for: bytes in, bytes out."""
        image = torch.from_numpy(frames).to(device, non_blocking=True).permute(0, 3, 1, 2)
        return (best(image.to(kind) / 255)[0].float().sigmoid() * 255).byte().cpu().numpy()

    return {**rows, "end to end, uint8 to uint8": end_to_end}


def bench_size(net, size, o, device):
    """Times all rows at one size -> ([[row, ms, p95, FPS, difference]], GFLOP, {kind: GFLOP/s})."""
    frames = np.random.default_rng(0).integers(0, 256, (o.batch, size, size, 3), np.uint8)
    runs = bench_rows(net, frames, device)
    with FlopCounterMode(display=False) as counter:
        exact = runs["fp32"]().float().sigmoid()
    half, n = (torch.float16, 8192) if device.type == "cuda" else (torch.bfloat16, 2048)
    for kind in (torch.float32, half):  # what the machine reaches at its best
        a = torch.rand(n, n, device=device).to(kind)
        runs[str(kind)[6:]] = functools.partial(torch.mm, a, a)
    times, end = {name: [] for name in runs}, time.monotonic() + o.seconds
    while time.monotonic() < end or len(times["fp32"]) < 8:
        for name, run in runs.items():  # in turn, so that a slow moment hits every row
            times[name].append(seconds_of(run, device))
    lines, rates = [], {}
    for name, run in runs.items():
        ms = 1000 * np.array(times[name][3:])  # the first three warm up
        if isinstance(run, functools.partial):
            rates[name] = 2 * n ** 3 / np.median(ms) / 1e6
        else:
            y = run()
            y = torch.from_numpy(y / 255) if isinstance(y, np.ndarray) else y.float().sigmoid()
            difference = (y.to(device) - exact).abs().max().item()
            lines.append([name, np.median(ms), np.percentile(ms, 95),
                          1000 * o.batch / np.median(ms), difference])
    return lines, counter.get_total_flops() / 1e9, rates


def cpu_name():
    """The CPU's name, where the system tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def bench(o):
    """`mlb.py bench`: frames per second, what each step towards them buys, how near the peak"""
    device = setup(o)
    net = load_net(o.weights, device)[0] if o.weights else MattingNet(o.width).to(device).eval()
    net = net.to(memory_format=torch.contiguous_format)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch {o.batch}, "
          f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters")
    report = {}
    for size in map(int, (o.sizes or str(o.size)).split(",")):
        with torch.no_grad():
            lines, gflop, rates = bench_size(net, size, o, device)
        report[size] = {"rows": lines, "gflop": gflop, "rates": rates}
        print("\n" + table([f"{size}x{size}", "ms", "ms p95", "FPS", "difference"],
                           [[*line[:4], f"{line[4]:.4f}"] for line in lines]))
        for (kind, rate), group in zip(rates.items(), (lines[:3], lines[3:-1])):
            reached = 1000 * gflop / min(line[1] for line in group)
            print(f"{kind}: {gflop / o.batch:.2f} GFLOP a frame, at best {reached:.0f} GFLOP/s, "
                  f"{100 * reached / rate:.0f} % of the {rate:.0f} of a matrix product")
    if o.sizes:
        ms = {size: found["rows"][-1][1] for size, found in report.items()}
        print("\n" + table(["end to end", "ms", "ms a megapixel"], [
            [f"{size}x{size}", ms[size], 1e6 * ms[size] / size ** 2 / o.batch] for size in ms]))
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2 ** 20:.0f} MiB")
    if o.out:
        text = json.dumps({"device": name, "sizes": report}, indent=1)
        save(text, make_folder(o.out) / "bench.json")


# ======================================================================================
# 8  Matting: a person cut out of one's own photo
# ======================================================================================
# A matte alone is not enough: a strand's pixel holds the colour of hair and of the old background.
# Put on a new one it shows a halo, unless the foreground's own colour is estimated.


def blur(x, radius):
    """Box blur of C×H×W by radius pixels, computed on a grid as coarse as so wide a blur allows.

    At the edges the mean is over what there is: padding with zeros would darken them.
    """
    step, size = max(1, radius // 3), x.shape[-2:]
    x = F.avg_pool2d(x[None], [min(step, side) for side in size], ceil_mode=True,
                     count_include_pad=False)
    reach = radius // step
    x = F.avg_pool2d(x, 2 * reach + 1, 1, reach, count_include_pad=False)
    return F.interpolate(x, size, mode="bilinear")[0]


def blur_fusion(image, alpha):
    """The foreground and background colours that lie about each pixel, 3×H×W both, in [0, 1].

    Forte: Approximate Fast Foreground Colour Estimation (ICIP 2021): both are blurred, each by its
    share of a pixel, and the foreground is fused with the image in between; first with a wide blur,
    then with a narrow one.
    """
    foreground = background = image
    for radius in (90, 6):
        share = blur(alpha, radius)
        around = blur(foreground * alpha, radius) / (share + 1e-5)
        background = blur(background * (1 - alpha), radius) / (1 - share + 1e-5)
        foreground = fuse(image, alpha, around, background)
    return around, background


def fuse(image, alpha, around, background):
    """What the colours around a pixel leave unexplained of the image, alpha gives to foreground."""
    return (around + alpha * (image - composite(around, alpha, background))).clip(0, 1)


def estimate_foreground(image, alpha):
    """The foreground colour F of image = αF + (1 − α)B, by blur-fusion; 3×H×W in [0, 1].

    image 3×H×W, alpha 1×H×W, in [0, 1]. A composite of F shows no halo of the old background.
    """
    return fuse(image, alpha, *blur_fusion(image, alpha))


def cut_out(net, photo, size, background=None):
    """(alpha L, cut-out RGBA, composite RGB or None) of an RGB picture, all of its size.

    Of a large photo the colours around each pixel are estimated on a coarse grid, since they are
    smooth, and fused strip by strip: all of it in floats would take gigabytes.
    """
    alpha, over = to_picture(predict(net, photo, size)[:1]), None
    coarse = max(1, min(photo.size) // 512)
    around = blur_fusion(to_tensor(photo.reduce(coarse)), to_tensor(alpha.reduce(coarse)))
    pixels, a = np.array(photo), np.array(alpha)
    layers = [torch.from_numpy(pixels), torch.from_numpy(a[..., None])]
    for x in around:  # bytes with the channels last: ten times as fast as floats
        x = (255 * x).round().byte()[None].contiguous(memory_format=torch.channels_last)
        layers.append(F.interpolate(x, a.shape, mode="bilinear")[0].permute(1, 2, 0))
    for rows in map(slice, range(0, photo.height, 256), range(256, photo.height + 256, 256)):
        strip = fuse(*(layer[rows].float() / 255 for layer in layers))
        pixels[rows] = (255 * strip).round().byte().numpy()
    pixels[a == 0] = 0  # nothing of the old background stays in the file
    cutout = Image.fromarray(pixels)
    if background:
        over = ImageOps.fit(background, photo.size)
        over.paste(cutout, mask=alpha)
    cutout.putalpha(alpha)
    return alpha, cutout, over


def matte(o):
    """`mlb.py matte`: cuts the person out of photos, without the old background's colour"""
    net, trained_at = load_net(o.weights, setup(o))
    out, failed, names, background = make_folder(o.out), 0, set(), None
    if o.background:
        try:
            background = Image.new("RGB", (16, 16), ImageColor.getrgb(o.background))
        except ValueError:  # not a colour, so a picture
            background = read(o.background)
    paths = []
    for given in map(pathlib.Path, o.photos):
        paths += [given / name for name in pictures(given)] if given.is_dir() else [given]
    for path in paths:
        try:
            photo, stem, k = read(path), path.stem, 2
            while stem in names:  # of another folder
                stem, k = f"{path.stem}-{k}", k + 1
            names.add(stem)
            found = cut_out(net, photo, o.size or trained_at, background)
            with futures.ThreadPoolExecutor() as threads:  # compression takes longest
                list(threads.map(lambda picture, kind: picture and picture.save(
                    out / f"{stem}_{kind}.png", compress_level=1,  # a profile is of colours
                    icc_profile=kind != "alpha" and photo.info.get("icc_profile") or None),
                    found, ("alpha", "cutout", "composite")))
            print(out / f"{stem}_cutout.png", flush=True)
        except (UserError, OSError) as problem:
            failed += 1
            complain(problem)
    if failed:
        raise UserError(f"{failed} of {len(paths)} photos failed, see above; the rest is in {out}")


def check_data(o):
    """`mlb.py data`: looks through a data set without training: counts, damaged files, data.png"""
    composites, backgrounds, naturals, tests = open_data(o)
    damaged = 0
    for name, found in (("D_m", composites), ("D_s", naturals), ("test", tests)):
        sizes = sorted((size_of(photo) for photo, _ in found), key=math.prod)
        print(f"{name}: {len(found)} pairs, {'x'.join(map(str, sizes[0]))} to "
              f"{'x'.join(map(str, sizes[-1]))} pixels, {found[0][0]} with {found[0][1]}")
        every = {(p, k == 1) for pair in found for k, p in enumerate(pair)}
        for path, label in sorted(every | {(p, False) for p in backgrounds if name == "D_m"}):
            try:
                read(path, label)
            except UserError as problem:
                damaged += 1
                complain(problem)
    mixer = Mixer(composites, backgrounds, naturals, o.mix, o.size, o.seed)
    rows = [[to_picture(s["image"]), s["target"][0], boundary_label(s["target"])[0]]
            for s in (mixer[i] for i in range(8))]
    make_folder(pathlib.Path(o.out).parent)
    contact_sheet([(["image", "target", "boundary"], rows)]).save(o.out, "PNG")
    print(f"{o.out}: what a batch looks like")
    if damaged:
        raise UserError(f"{damaged} damaged files, see above; replace them or take them out")


# ======================================================================================
# 9  Command line
# ======================================================================================
# One subcommand per job; the options are tables, so that defaults and help can't drift apart.

TRAINING = {  # option: (default, help)
    "out": ("runs/mlb", "folder for all that the run writes"),
    "size": (128, "side of a training picture in pixels, a multiple of 32"),
    "width": (32, "channels of the network's first stage"),
    "batch": (6, "pictures in a step, over all ranks"),
    "teacher_steps": (1000, "steps of the teacher"),
    "steps": (1300, "steps of the student"),
    "lr": (4e-3, "highest learning rate"),
    "mix": (0.1, "share of composites in the student's batches"),
    "band": (None, "trust the teacher only within so many pixels of the mask's edge"),
    "seed": (0, "of everything random"),
    "amp": ("auto", "precision: off, bf16, fp16 or auto (fp16 on CUDA, else off)"),
    "workers": (0, "processes that load data"),
    "compile": (False, "torch.compile the network"),
    "resume": (False, "go on with the run in --out; begin it where there is none"),
}
COMPARISON = {k: v for k, v in TRAINING.items() if k not in ("teacher_steps", "seed", "resume")} | {
    "out": ("runs/compare", "folder for tables, pictures, figures and weights"),
    "seeds": (3, "how many seeds, from 0"),
    "steps": (1300, "steps of every training"),
    "band": (8, "of the row MLB + band, in pixels"),
    "budget": (False, "sweep the numbers of mattes and masks instead"),
}
BENCH = {
    "size": (512, "side of a frame"),
    "sizes": ("", "several sides, such as 256,512,1024: how cost grows with pixels"),
    "batch": (1, "frames at a time"),
    "width": (32, "channels of the network's first stage"),
    "weights": ("", "a teacher.pt or student.pt; random weights are as fast"),
    "seconds": (10.0, "how long to measure a size"),
    "out": ("", "folder for bench.json"),
}
MATTE = {
    "weights": (None, "a teacher.pt or student.pt"),
    "out": ("cutouts", "folder for the pictures"),
    "background": ("", "colour (white, #30a0ff) or picture: writes composites too"),
    "size": (0, "short side that the network sees; 0: as it was trained"),
}
EVAL = {k: MATTE[k] for k in ("weights", "size")}
DATA = {"out": ("data.png", "contact sheet"), **{k: TRAINING[k] for k in ("size", "mix", "seed")}}
LIMITS = {"mix": (0, 1), "band": (1, 1e9), "batch": (1, 1e9), "width": (1, 1e4), "seeds": (1, 1e9),
          "steps": (1, 1e12), "teacher_steps": (1, 1e12), "workers": (0, 1e4), "lr": (0, 1e9),
          "seed": (0, 2 ** 63 - 1), "size": (0, 1e5), "seconds": (0, 1e9)}


def parser():
    """The command line, its help made from the tables above."""
    p = argparse.ArgumentParser(prog="mlb.py", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    test, most = ["test_image", "test_alpha"], [k for k in FOLDERS if k != "seg_alpha"]
    for run, options, folders in (
            (train, TRAINING, most), (evaluate_weights, EVAL, test), (compare, COMPARISON, FOLDERS),
            (bench, BENCH, ()), (matte, MATTE, ()), (check_data, DATA, most)):
        name, what = run.__doc__.strip("`").removeprefix("mlb.py ").split("`: ")
        c = commands.add_parser(name, help=what, description=what,
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        c.set_defaults(run=run)
        if run is matte:
            c.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, or folders of them")
        if folders:
            c.add_argument("--data", default=str(pathlib.Path(__file__).with_name("data_sample")),
                           metavar="FOLDER", help="the data set")
        for option in folders:
            c.add_argument(f"--{option.replace('_', '-')}", metavar="FOLDER", default="",
                           help=f"{FOLDERS[option][1]}, instead of DATA/{FOLDERS[option][0]}")
        if run is not check_data:
            options = {**options, "device": ("auto", "auto, cpu, cuda, cuda:1 ...")}
        for option, (default, what) in options.items():
            kind = {"action": "store_true"} if default is False else {
                "default": default, "type": int if option == "band" else type(default)}
            kind = {"required": True} if option == "weights" and default is None else kind
            c.add_argument(f"--{option.replace('_', '-')}", help=what, **kind)
    return p


def check_options(o):
    """Raises UserError for values that make no sense, before anything is read or made."""
    for name, (low, high) in LIMITS.items():
        value = getattr(o, name, None)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value}: take one from {low} to {high:g}")
    if getattr(o, "amp", "off") not in ("auto", "off", "bf16", "fp16"):
        raise UserError(f"--amp {o.amp}: take auto, off, bf16 or fp16")
    if o.command in ("train", "compare", "bench", "data"):
        for side in (getattr(o, "sizes", "") or str(o.size)).split(","):
            if not side.isdecimal() or not int(side) or int(side) % 32:
                raise UserError(f"--size, --sizes {side}: the network takes multiples of 32")


def complain(problem):
    """A problem as one line on standard error."""
    text = str(problem).rsplit("UserError: ", 1)[-1].strip()  # a worker adds its traceback
    print("mlb: error: " + text.replace("\n", "\\n"), file=sys.stderr, flush=True)


def main(argv=None):
    """Runs a command -> exit status: 0, 2 after a UserError, 130 after Ctrl-C."""
    o = parser().parse_args(argv)
    run = vars(o).pop("run")
    try:
        check_options(o)
        run(o)
        return 0
    except (UserError, OSError) as problem:  # no space, no permission
        complain(problem)
        return 2
    except KeyboardInterrupt:
        again = {train: "the same command with --resume goes on",
                 compare: "the same command goes on"}.get(run, "try again")
        print(f"\nmlb: stopped; {again}", file=sys.stderr)
        return 130
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal without Greek shows α as ?
    sys.exit(main())

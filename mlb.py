# SPDX-License-Identifier: MIT
"""Matte Label Blending (MLB): weakly semi-supervised human matting in one file, to read beside
Kim, Yi, Yu, Yoo, Hwang: Towards Label-Efficient Human Matting (arXiv 2404.00921).

A few composites with exact mattes (D_m) train a teacher. Many natural photos with cheap, coarse
masks (D_s) then train a real-time student, whose labels take semantics from the mask and hair
from the teacher:

    M       matte label, in [0, 1]          α       its boundary: 1 where 0.05 < M < 0.95, else 0
    M′, α′  the teacher's two outputs       S       segmentation label, 0 or 1, without hair
    B       blended label: α′·M′ + (1 − α′)·S

Deviations. We did not have the paper's text: the formulas of α and B are our reading of summaries.
Where we knew nothing we chose: the network, the losses, the optimizer, the augmentation; α′ is used
as a probability, without a threshold; the student starts from scratch, sees D_m too (the dataset
mixer) and learns the boundary of B. One extension has rows of its own: a guided teacher, which sees
S as well, see guided_blend.
"""

import argparse
import contextlib
import copy
import functools
import glob
import io
import json
import math
import os
import re
import sys
import time
import unicodedata
import warnings
import zlib
from collections import defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageDraw, ImageFilter, ImageOps
from torch import distributed, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader, Dataset

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# torchrun sets these; without it there is one process
RANK = int(os.environ.get("RANK") or 0)
WORLD_SIZE = int(os.environ.get("WORLD_SIZE") or 1)


class UserError(Exception):
    """What the user can put right: main says it in one line and exits with status 2."""


@functools.cache  # a bad file is drawn again and again, and told of once
def note(text):
    """One line on standard error that is no error."""
    print("mlb: note:", text.replace("\n", " "), file=sys.stderr)


# == 1  Data: pairs, decoding, compositing, augmentation, the dataset mixer ======================
# Random numbers are numpy's, pictures bytes: threads change no bit of a sample.

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no PostScript, whatever a suffix says
SMALLEST_CROP = 0.7  # a training picture shows from 0.7 to 1 of a photo's short side
CACHED = 256  # pairs that are kept decoded; those of a longer list are not
SAMPLE = Path(__file__).with_name("data_sample")


def composite(foreground, alpha, background):
    """The compositing equation (Porter & Duff 1984), alpha · foreground + (1 − alpha) · background,
    for arrays that broadcast, in [0, 1] or bytes (whose differences wrap: 10 − 20 is 246). alpha is
    a matte, in [0, 1]; the paper's α is another thing."""
    return alpha * foreground + (1 - alpha) * background


def find_pictures(folder):
    """The pictures below a folder, links followed: [path, ...]. Raises UserError for none."""
    suffixes = Image.registered_extensions()
    found, passed_over = [], []
    for name in sorted(glob.glob("**/*.*", root_dir=folder, recursive=True)):  # no hidden files
        path = Path(folder, name)
        if path.is_dir():
            continue
        if suffixes.get(path.suffix.lower()) in FORMATS:
            found.append(path)
        else:
            passed_over.append(path)
    if passed_over:  # HEIC, raw and the like are not read by Pillow alone
        count = len(passed_over)
        note(f"{count} files that can't be read here are passed over, such as {passed_over[0]}")
    if not found:
        raise UserError(f"{folder}: no pictures there; a data set has the layout of data_sample")
    return found


def by_name(paths, folder):
    """{name: path}, None where several have a name. A name is the path from the folder on, without
    its suffix; without a folder, the file's stem."""
    named = {}
    for path in paths:
        name = str(path.relative_to(folder).with_suffix("")) if folder else path.stem
        name = unicodedata.normalize("NFC", name)  # é has two forms, and a Mac writes the other
        named[name] = None if name in named else path
    return named


def pairs(images, labels):
    """Pairs the pictures of two folders by name, else by stem: [(photo's path, label's), ...].
    What has no partner is counted in a note; no pair at all raises UserError."""
    photos, answers = find_pictures(images), find_pictures(labels)
    found = {}
    for image_folder, label_folder in ((None, None), (images, labels)):
        named, answered = by_name(photos, image_folder), by_name(answers, label_folder)
        for name, photo in named.items():
            if photo and answered.get(name):
                found[photo] = answered[name]
    if not found:
        raise UserError(f"{images}: no name of a picture stands in {labels} too")
    alone = {*photos, *answers} - {*found, *found.values()}
    if alone:
        note(f"{len(alone)} pictures without one partner are left out, such as {min(alone)}")
    return sorted(found.items())


def read(path, label=False, short=10**6):
    """A picture file, upright: a photo as RGB; a label (matte or mask) as L, 255 for the person.
    short: the short side in pixels that is enough, faster to decode. Raises UserError."""
    if not os.path.isfile(path):  # a pipe would hang
        raise UserError(f"{path}: no picture there; give another")
    try:
        # an opened file, not its path: Pillow would map grey TIFF files, and forget to turn them
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            image.draft(None, (short, short))  # a JPEG can be decoded to a half or a quarter
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
    except Exception as problem:  # decoders raise what they like on a damaged file
        raise UserError(f"{path}: can't be decoded ({problem}); replace or remove it") from None
    low, high = sorted(image.size)
    if low < 16 or high > 16 * low or image.mode[0] in "IF" or image.mode == "LAB":
        raise UserError(
            f"{path}: {low}x{high} pixels, mode {image.mode}; take 8 bits a colour, 16 pixels or "
            "more, and no side 16 times the other"
        )
    image = as_label(image, path) if label else as_srgb(image)
    factor = low // short
    return image.reduce(factor) if factor > 1 else image  # reduce(1) would copy


def as_srgb(image):
    """A decoded photo as RGB, its numbers those of sRGB: a phone's may be of a wider space."""
    profile = image.info.get("icc_profile")
    if image.mode not in ("L", "CMYK", "RGB"):  # profiles are of these
        image = image.convert("RGB")
    if profile and b"sRGB IEC61966" not in profile:
        try:
            source, srgb = io.BytesIO(profile), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        except ImageCms.PyCMSError:
            note("a photo's colour profile can't be used; its colours are taken as they are")
    return image if image.mode == "RGB" else image.convert("RGB")


def as_label(image, path):
    """A decoded label as L, 0 to 255; what could mean several things is refused, not guessed."""
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] < 128:  # AISegment keeps its mattes there
            image = alpha
    grey = image.convert("L")
    highest = grey.getextrema()[1]
    coloured = image.mode != "L" and grey.convert("RGB") != image.convert("RGB")
    if coloured or 1 < highest < 128:
        raise UserError(f"{path}: colours or class numbers; save it as 8-bit grey, person 255")
    if highest == 1 and grey.histogram()[1] > 16:  # a matte of nobody may have a stray 1
        grey = grey.point(lambda value: 255 * value)
    return grey


def read_pair(photo_path, label_path, short=10**6):
    """A photo and its label, see read; without a path None. Raises UserError where their aspects
    differ by over 2 %: they can't belong together."""
    photo = read(photo_path, short=short)
    if label_path is None:
        return photo, None
    label = read(label_path, True, short)
    ratio = label.width / label.height / (photo.width / photo.height)
    if abs(ratio - 1) > 0.02 + 0.5 / min(photo.size):  # sides are rounded
        raise UserError(f"{label_path}: {label.size}, but {photo_path}: {photo.size}; remove one")
    return photo, label


read_pair_once = functools.lru_cache(CACHED)(read_pair)


def degrade(image, rng):
    """A picture, bytes H×W×3, under other light, 3 of 10 out of focus, 3 of 10 noisy."""
    picture = Image.fromarray(image)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0, 2)))
    brightness, gamma = rng.uniform(0.85, 1.15), rng.uniform(0.75, 1.33)
    tint = rng.uniform(0.95, 1.05, (3, 1))
    levels = 255 * brightness * tint * (np.arange(256) / 255) ** gamma
    picture = picture.point(to_bytes(levels).ravel().tolist())  # 256 of red, of green, of blue
    image = np.array(picture)  # not asarray: torch wants to be able to write
    if rng.random() < 0.3:
        strength = rng.integers(20)
        noise = rng.integers(-strength, strength + 1, image.shape, np.int16)
        image = to_bytes(image + noise)
    return image


def to_bytes(x):
    """An array of numbers as bytes, rounded, 0 to 255."""
    return x.round().clip(0, 255).astype(np.uint8)


def clutter(background, rng):
    """A background, bytes H×W×3, 7 of 10 with shapes drawn on it: trained on plain ones alone, a
    teacher takes every edge, and all that is thin, for a person."""
    picture = Image.fromarray(background)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 8) if rng.random() < 0.7 else 0):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        corner = rng.uniform(-0.2, 1, 2) * picture.width
        sides = rng.uniform(0.05, 0.6, 2) * picture.width
        box = [*corner, *(corner + sides)]
        kind = rng.choice(["ellipse", "rectangle", "twig"])
        if kind == "ellipse":
            draw.ellipse(box, colour)
        elif kind == "rectangle":
            draw.rectangle(box, colour)
        else:
            points = corner + sides * rng.random((12, 2))
            draw.line(points.ravel().tolist(), colour, width=2)
    return np.asarray(picture)


def hurried_mask(matte, rng):
    """A mask of 0 and 255 as a hurried annotator might click it, for a matte, bytes H×W: shrunk by
    1 to 3, blurred by about 1 % of its width, cut at levels of 100 to 240 that change slowly from
    place to place, and then enlarged, in blocks (our extension)."""
    size = matte.shape[::-1]
    small = Image.fromarray(matte).reduce(int(rng.integers(1, 4)))
    radius = rng.uniform(0.5, 2) * small.width / 128
    small = small.filter(ImageFilter.GaussianBlur(radius))
    level = Image.fromarray(rng.integers(100, 240, (8, 8), np.uint8)).resize(small.size)
    inside = np.asarray(small) > np.asarray(level)
    return np.array(Image.fromarray(inside).resize(size).convert("L"))


def annotate(matte, rng):
    """A mask as one annotator or another makes it of a matte, bytes H×W: half of them careful, the
    matte cut at one half, half hurried (our extension). A teacher that saw hurried ones alone in
    training would mend what is right in careful ones."""
    careful = rng.random() < 0.5
    return np.uint8(255) * (matte > 127) if careful else hurried_mask(matte, rng)


class Mixer(Dataset):
    """The dataset mixer of composites (D_m) and natural photos (D_s). Sample i is a pure function
    of (seed, i), to the last bit: a run resumes exactly, workers change nothing, ranks take every
    n-th.

    composites: (foreground, alpha) paths; backgrounds: paths, or none: photos as they are;
    naturals: (photo, label) paths; mix: share of composites, with annotated masks if guided.
    """

    def __init__(self, composites, backgrounds, naturals, mix, size, seed=0, guided=False):
        self.composites = composites
        self.backgrounds = [(path, None) for path in backgrounds]
        self.naturals = naturals
        self.mix, self.size, self.seed, self.guided = mix, size, seed, guided

    def __getitem__(self, i):
        """-> {"image": bytes 3×size×size, "target" (M or S) and "mask": bytes 1×size×size,
        "natural": bool, whether it is of D_s}. Another draw takes the place of a file that can't be
        used, nine times in a row."""
        rng = np.random.default_rng((self.seed, i))
        for _ in range(9):
            try:
                return self.draw(rng)
            except UserError as problem:
                note(f"{problem}; another sample takes its place")
        return self.draw(rng)

    def draw(self, rng):
        """One sample, numpy bytes as in __getitem__:
        1. with probability mix a composite, else a natural photo: a crop of a pair;
        2. the person of a composite is put before a crop of a background, after clutter (without
           backgrounds the picture stays as it is);
        3. the image is degraded, the target is not (a matte has no light, blur or noise);
        4. the mask is the target; if guided, a composite's is annotate(target, rng)."""
        natural = bool(rng.random() >= self.mix)
        image, target = self.crop(self.naturals if natural else self.composites, rng)
        if self.backgrounds and not natural:
            background, _ = self.crop(self.backgrounds, rng)
            background = clutter(background, rng)
            alpha = target[..., None] / np.float32(255)
            image = to_bytes(composite(image, alpha, background))
        image = degrade(image, rng).transpose(2, 0, 1)
        mask = annotate(target, rng) if self.guided and not natural else target
        return {"image": image, "target": target[None], "mask": mask[None], "natural": natural}

    def crop(self, items, rng):
        """A random square of a random item, half of them mirrored: size×size×3, and the same of its
        label, size×size, if it has one."""
        paths = items[rng.integers(len(items))]
        short = math.ceil(self.size / SMALLEST_CROP)
        load_pair = read_pair_once if len(items) <= CACHED else read_pair
        photo, label = load_pair(*paths, short)
        side = round(rng.uniform(SMALLEST_CROP, 1) * min(photo.size))
        left, top = (rng.integers(length - side + 1) for length in photo.size)
        box = (left, top, left + side, top + side)
        square = photo.crop(box)
        if label:
            square.putalpha(label.resize(photo.size).crop(box))
        # torch resizes bytes several times as fast as Pillow, a label beside the colours
        x = torch.from_numpy(np.array(square))[None].permute(0, 3, 1, 2)
        x = F.interpolate(x, self.size, mode="bilinear", antialias=True)[0]
        if rng.random() < 0.5:
            x = x.flip(2)
        image = x[:3].permute(1, 2, 0).contiguous().numpy()
        return image, x[3].numpy() if label else None


# == 2  Model: the compact real-time encoder-decoder =============================================
# A layer at full resolution costs 16 times one at a quarter: all work at a quarter or below.


def conv(inputs, outputs, stride=1, size=3):
    """Convolution, batch norm, ReLU: N×inputs×H×W -> N×outputs×H/stride×W/stride.
    No bias: batch norm has one. For inference the two fold into one convolution (see fold)."""
    padding = (size - stride + 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class MattingNet(nn.Module):
    """Images N×3×H×W in [0, 1] -> matte and boundary logits, N×1×H×W each; H, W multiples of 32.

    The stem turns a cell of 4×4 pixels, 48 values, into w channels: strands get lost. So the head
    adds the pixels' own colours, by three weights that it gives to each cell (a colour gate):
        a pixel's matte logit = the head's + r · red + g · green + b · blue
    which is the guided filter (He et al., ECCV 2010), learned. With guided=True the fourth input
    channel is a mask: the network of the guided teacher.
    """

    def __init__(self, width=32, guided=False):
        super().__init__()
        w = width
        self.guided = guided
        self.down4 = conv(4 if guided else 3, w, stride=4, size=4)
        self.down8 = conv(w, 2 * w, stride=2)
        self.down16 = conv(2 * w, 3 * w, stride=2)
        self.down32 = conv(3 * w, 4 * w, stride=2)
        self.deep32 = conv(4 * w, 4 * w)  # added to its input, as in He et al. (CVPR 2016)
        self.up32 = conv(4 * w, 3 * w)  # as wide as what it meets: no 1×1 laterals
        self.up16 = conv(3 * w, 2 * w)
        self.up8 = conv(2 * w, w)
        self.up4 = conv(w, w)
        self.head = nn.Conv2d(w, 16 + 4 + 3, 3, padding=1)  # matte, boundary, gate

    def forward(self, images, masks=None):
        x = torch.cat([images, masks], dim=1) if self.guided else images
        x4 = self.down4(x)  # N, w, H/4, W/4
        x8 = self.down8(x4)  # N, 2w, H/8, W/8
        x16 = self.down16(x8)  # N, 3w, H/16, W/16
        x32 = self.down32(x16)  # N, 4w, H/32, W/32
        x = self.up32(x32 + self.deep32(x32))
        x = self.up16(x16 + F.interpolate(x, scale_factor=2.0))  # nearest: quicker than bilinear
        x = self.up8(x8 + F.interpolate(x, scale_factor=2.0))
        x = self.up4(x4 + F.interpolate(x, scale_factor=2.0))
        matte, boundary, gate = self.head(x).split((16, 4, 3), dim=1)
        # red, green and blue of the 16 pixels of each cell: three of N, 16, H/4, W/4
        colours = F.pixel_unshuffle(images, 4).split(16, dim=1)
        for k in range(3):
            matte = torch.addcmul(matte, gate[:, k : k + 1], colours[k])
        boundary = F.pixel_shuffle(boundary, 2)  # a region needs no more
        return F.pixel_shuffle(matte, 4), F.interpolate(boundary, scale_factor=2.0)


# == 3  MLB: the heart, in the paper's letters (α is the boundary here, M the matte) =============
# A prime marks what the teacher says; here a t: M_t is M′, alpha_t is α′. One loss for both stages.


def boundary_label(M, low=0.05, high=0.95):
    """The boundary α of a matte M: 1 where low < M < high, else 0 (the paper's boundary label).
    M in [0, 1], of any shape; α has its shape and type. It is where detail is: hair, fur, blur."""
    return ((M > low) & (M < high)).to(M.dtype)


def blend(M_t, alpha_t, S):
    """The label B = α′·M′ + (1 − α′)·S: semantics from the segmentation, hair from the teacher.
    The teacher's matte M_t and boundary alpha_t and the segmentation S share a shape, in [0, 1]
    (resizing gives S greys); alpha_t is a probability, not cut at a threshold (our choice)."""
    return alpha_t * M_t + (1 - alpha_t) * S


def guided_blend(M_t, alpha_t, S):
    """B of a teacher that has seen S (our extension). One that has not seen S disagrees with it
    mostly by mistake, so it is trusted at its boundary only. One that has is mostly right where it
    disagrees: with w = |M′ − S|, how far it contradicts S, its label is w·M′ + (1 − w)·B."""
    w = (M_t - S).abs()
    B = blend(M_t, alpha_t, S)
    return blend(M_t, alpha_t=w, S=B)  # the same mixture again, with w as the teacher's share


def laplacian_loss(prediction, target, levels=4):
    """Mean |difference| of two Laplacian pyramids, N×1×H×W: edges count at every scale. As in Hou &
    Liu (ICCV 2019) weights double from level to level, 1 for the finest. Ours halves by means of
    2×2 and enlarges by repeating pixels; the sum is divided by levels; the coarsest means are left
    out."""
    difference = prediction - target  # a pyramid is linear: one of the difference is enough
    total = 0
    for level in range(levels):
        coarse = F.avg_pool2d(difference, 2)
        fine = difference - F.interpolate(coarse, scale_factor=2.0)
        total = total + 2**level * fine.abs().mean()
        difference = coarse
    return total / levels


def mlb_loss(matte_logits, boundary_logits, target, boundary):
    """The loss of either stage (our choice): {name: scalar}, four terms and their sum, "total". All
    given is N×1×H×W, target in [0, 1], boundary in {0, 1}. "matte" and "boundary" are binary
    cross-entropies of the logits, "laplacian" is laplacian_loss of the matte, "detail" its |error|,
    a mean over each picture's boundary (0 if it has none), then over pictures. In fp32: a mean over
    a million pixels needs its digits."""
    matte_logits, boundary_logits = matte_logits.float(), boundary_logits.float()
    matte = matte_logits.sigmoid()
    error = boundary * (matte - target).abs()
    pixels = boundary.sum((1, 2, 3)).clamp(min=1)
    terms = {
        "matte": F.binary_cross_entropy_with_logits(matte_logits, target),  # semantics
        "laplacian": laplacian_loss(matte, target),  # edges
        "detail": (error.sum((1, 2, 3)) / pixels).mean(),  # hair
        "boundary": F.binary_cross_entropy_with_logits(boundary_logits, boundary),  # α itself
    }
    terms["total"] = sum(terms.values())
    return terms


# == 4  Training: a row of the table of results is a network, its training, and its file =========
# Students of a seed share first weights and samples: they differ in mix and in labels alone.

# mix      share of composites in what the row sees; None: --mix
# label    of its natural photos; None: the row is a teacher, and sees none
# teacher  the row that says M′ and α′ of these photos
# guided   whether the row itself sees masks
Row = namedtuple("Row", "mix label teacher guided", defaults=[None, None, None, False])
ROWS = {
    "teacher": Row(mix=1.0),
    "guided teacher": Row(mix=1.0, guided=True),
    "segmentation only": Row(mix=0.0, label="S"),
    "naive mix": Row(label="S"),
    "pseudo-labels": Row(label="M′", teacher="teacher"),
    "MLB": Row(label="B", teacher="teacher"),
    "MLB guided": Row(label="B guided", teacher="guided teacher"),
    "upper bound": Row(label="true matte"),
}
# of a row's log: terms of the loss, learning rate, seconds until the batch was there, and in all
COLUMNS = ["matte", "laplacian", "detail", "boundary", "total", "lr", "waited", "seconds"]
SAVE_SECONDS = 10  # between two checkpoints
HALF = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(step, steps, highest):
    """The lower of a ramp of 20 steps and half a cosine; steps count from 1."""
    ramp = step / 20
    cosine = (1 + math.cos(math.pi * (step - 1) / steps)) / 2
    return highest * min(ramp, cosine)


def label_batch(batch, label, teacher, device):
    """A batch of the mixer on the device -> image, mask and target, in [0, 1], N×C×H×W. A photo's
    target is its teacher's M′ or B, see ROWS, predicted on the student's own crop; S and true
    mattes come from the mixer's files."""
    batch = {key: x.to(device, non_blocking=True) for key, x in batch.items()}
    image = (batch["image"] / 255).to(memory_format=torch.channels_last)
    target, mask = batch["target"] / 255, batch["mask"] / 255
    if teacher is not None:
        with torch.no_grad():
            M_t, alpha_t = (logits.float().sigmoid() for logits in teacher(image, mask))
        labels = {  # cheap: one is used
            "M′": M_t,
            "B": blend(M_t, alpha_t, S=mask),
            "B guided": guided_blend(M_t, alpha_t, S=mask),
        }
        natural = batch["natural"].view(-1, 1, 1, 1)  # composites keep their exact mattes
        target = torch.where(natural, labels[label], target)
    return image, mask, target


def train_step(net, batch, label, teacher, optimizer, scaler, half):
    """Forward, backward and update on a batch of the mixer -> terms of the loss, on the device.
    half: the type of autocast, or None. Only fp16's scaler waits for the device."""
    device = next(net.parameters()).device
    with torch.autocast(device.type, half, enabled=half is not None):
        image, mask, target = label_batch(batch, label, teacher, device)
        matte_logits, boundary_logits = net(image, mask)  # the mask is for guided ones alone
    boundary = boundary_label(target)  # of the student's own label, not its teacher's α′
    terms = mlb_loss(matte_logits, boundary_logits, target, boundary)

    optimizer.zero_grad()
    scaler.scale(terms["total"]).backward()
    scaler.step(optimizer)  # left out where fp16 overflowed; update then lowers the scale
    scaler.update()

    terms = torch.stack([terms[name] for name in COLUMNS if name in terms]).detach()
    if WORLD_SIZE > 1:  # the log tells of the whole batch
        distributed.all_reduce(terms)
    return terms / WORLD_SIZE


def new_net(name, seed, args):
    """A row's network before its first step. Those of a seed start from the same weights; only the
    guided teacher's has a fourth input."""
    torch.manual_seed(seed)
    net = MattingNet(args.width, ROWS[name].guided)
    net = net.to(args.device, memory_format=torch.channels_last)  # as tensor cores, oneDNN read it
    if WORLD_SIZE > 1 and args.device != "cpu":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # one mean over all ranks' pictures
    return net


def new_loader(name, seed, done, steps, args, data):
    """The batches of a row after `done` of its steps; of each, a rank gets its share."""
    row = ROWS[name]
    mixer = Mixer(
        data["mattes"],
        data["backgrounds"],
        data["true mattes" if row.label == "true matte" else "masks"],
        args.mix if row.mix is None else row.mix,
        args.size,
        2 * seed + (row.label is None),  # odd for teachers: no student sees their very composites
        guided=row.guided,
    )
    return DataLoader(
        mixer,
        args.batch // WORLD_SIZE,
        # sample i is a function of (seed, i): numbers are enough to resume, and to share out
        sampler=range(done * args.batch + RANK, steps * args.batch, WORLD_SIZE),
        num_workers=args.workers,
        pin_memory=args.device != "cpu",
    )


def fit(name, seed, nets, args, data):
    """Trains the network of a row of ROWS, or goes on from its file -> the network, frozen.
    nets: {row: network} of this seed; its teacher's has been trained. At first reading, follow
    new_loader, label_batch and train_step: the rest is bookkeeping."""
    net, row = nets[name], ROWS[name]
    teacher = nets.get(row.teacher)
    path = args.out / f"{name}.{seed}.pt"
    steps = args.teacher_steps if row.label is None else args.steps

    optimizer = Muon(net.parameters(), {"lr": args.lr, "weight_decay": args.weight_decay})
    # fp16 holds nothing below 6e-8: the scaler multiplies the loss so that gradients survive it
    scaler = torch.amp.GradScaler(torch.device(args.device).type, enabled=args.amp == "fp16")
    parts = {"net": net, "optimizer": optimizer, "scaler": scaler}
    log = restore(path, parts)

    loader = new_loader(name, seed, len(log), steps, args, data)
    torch.backends.cudnn.benchmark = True  # one size: try all kernels, keep the fastest
    model = nn.parallel.DistributedDataParallel(net) if WORLD_SIZE > 1 else net
    model = torch.compile(model) if args.compile else model
    clock = time.monotonic()
    next_save = clock + 2  # the first soon: one wants to know how long it takes
    for step, batch in enumerate(loader, start=len(log) + 1):
        waited = time.monotonic() - clock
        if step == 1 and RANK == 0:
            shown = label_batch(batch, row.label, teacher, args.device)
            save_batch(*shown, batch["natural"], row.label, path)
        rate = learning_rate(step, steps, args.lr)
        optimizer.param_groups[0]["lr"] = rate
        terms = train_step(model, batch, row.label, teacher, optimizer, scaler, HALF[args.amp])
        now = time.monotonic()
        log.append([*terms, rate, waited, now - clock])  # terms stay on the device until saved
        clock = now

        if step == steps or clock > next_save:
            next_save = clock + SAVE_SECONDS
            log = [[float(x) for x in entry] for entry in log]  # float waits for the device
            if RANK == 0:
                save(path, parts, log, args)
                report(name, seed, steps, log, args)
    return net.eval().requires_grad_(False)


def fit_rows(names, seed, nets, args, data):
    """Trains rows one after another; those of compare on a CPU side by side, one on each core."""
    fit_row = functools.partial(fit, seed=seed, nets=nets, args=args, data=data)
    if args.command == "compare" and args.device == "cpu" and WORLD_SIZE == 1 and not args.workers:
        cores = min(4, torch.get_num_threads())
        pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
        list(pool.map(fit_row, names))  # waits for all; Ctrl-C does not
    else:
        for name in names:
            fit_row(name)


def train(args):
    """Trains a command's rows, seed by seed; the first rank of torchrun tells how good they are."""
    start = time.monotonic()
    data = open_data(args)
    args.files = fingerprint(args.data)
    if args.command == "compare":
        seeds = range(args.seeds)
        names = [name for name in ROWS if name != "upper bound" or data["true mattes"]]
    else:
        seeds = [args.seed]
        names = ["guided teacher", "MLB guided"] if args.guide else ["teacher", "MLB"]
    teachers = [name for name in names if ROWS[name].label is None]
    students = [name for name in names if name not in teachers]
    args.out.mkdir(parents=True, exist_ok=True)

    scores = defaultdict(list)
    with locked(args.out):
        refuse_another_run(args.out, names, seeds, args)
        if RANK == 0:
            counts = [f"{len(paths)} {use}" for use, paths in data.items()]
            print(args.device, *counts, sep=", ")
        for seed in seeds:
            # made here, not in threads: torch's random numbers are shared
            nets = {name: new_net(name, seed, args) for name in names}
            fit_rows(teachers, seed, nets, args, data)  # stage 1, from composites
            fit_rows(students, seed, nets, args, data)  # stage 2, from their teachers' labels
            if RANK == 0:
                evaluate_seed(nets, scores, args, data)
    if RANK == 0:
        print(table(scores))
        print(f"{(time.monotonic() - start) / 60:.1f} minutes; look at the pictures in {args.out}")


def evaluate_seed(nets, scores, args, data):
    """Adds the metrics of a seed's networks and labels to scores, and writes all into --out."""
    found = evaluate(nets, data["tests"], args.size, args.out / "mattes.png")
    of_labels = evaluate(nets, data["known"], args.size, args.out / "labels.png")
    if data["true mattes"]:  # else there was nothing to measure
        found |= of_labels
    for title, means in found.items():
        scores[title].append(means)
    text = json.dumps(scores, indent=1).replace("NaN", "null")
    (args.out / "metrics.json").write_text(text)
    (args.out / "table.md").write_text(table(scores) + "\n", encoding="utf-8")


# -- 4, continued: the optimizer, and what a run reads and writes. The method ends above ----------


def orthogonal(G):
    """About U·Vᵀ for G = U·Σ·Vᵀ: all singular values over a 500th of |G| become 0.7 to 1.2.
    Muon's Newton-Schulz iteration X ← P·X, P = a + b·A + c·A² and A = X·Xᵀ; here A and the product
    of all P are iterated, so that wide G is multiplied only twice."""
    A = G @ G.T
    size = A.trace().sqrt() + 1e-12
    A = A / size**2
    product = unit = torch.eye(len(A), device=A.device)
    for _ in range(5):
        P = 3.4445 * unit - 4.775 * A + 2.0315 * A @ A  # steep at 0: 5 are enough
        product = P @ product
        A = P @ A @ P
    return product @ G / size


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): SGD with Nesterov's momentum, but a kernel, as a matrix with a row
    for each output channel, moves by the orthogonal matrix nearest to its momentum: rare directions
    are learned as fast as common ones. Vectors (batch norm's, the head's bias) keep direction, and
    do not decay. "lr" is about how far weights move in a step (root mean square, as in Liu et al.
    2025). torch.optim.Muon accepts 2-D parameters only, and computes in bf16."""

    @torch.no_grad()
    def step(self):
        """Moves all parameters by their gradients; each has one."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(0.95).add_(p.grad)
                G = p.grad + 0.95 * momentum
                if p.dim() > 1:
                    unit = orthogonal(G.flatten(1))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                else:
                    unit = F.normalize(G, dim=0)
                scale = math.sqrt(max(unit.shape))  # with it the root mean square is about 1
                p.sub_(group["lr"] * scale * unit.view_as(p))


# what must stay the same on --resume; "files" is the data set, see fingerprint
RUN_OPTIONS = ["files", "mattes", "masks", "size", "width", "batch", "teacher_steps", "steps"]
RUN_OPTIONS += ["lr", "weight_decay", "mix", "amp", "compile"]


def report(name, seed, steps, log, args):
    """Prints how far a row has come, and notes what holds it up."""
    columns = dict(zip(COLUMNS, np.transpose(log), strict=True))
    step, loss, seconds = len(log), columns["total"][-1], columns["seconds"]
    pace = seconds[-50:].mean()
    left = timedelta(seconds=round(pace * (steps - step)))
    print(f"{name:17} seed {seed}  step {step:5}/{steps}  loss {loss:.4f}  {left} left")
    waited = columns["waited"].sum() / seconds.sum()
    if args.device != "cpu" and step == steps and waited > 0.2:
        note(f"{waited:.0%} of {name} was waiting: more --workers, or shrink large photos once")
    elif args.device == "cpu" and pace > 2 * seconds[:50].mean():
        note("steps take twice as long as at first: on a busy machine try OMP_NUM_THREADS=1")


def save(path, parts, log, args):
    """Writes a row's file beside its place, then renames it, never half a file; its log as CSV.
    Raises UserError where it can't, and where a loss is no number: nothing comes after that."""
    terms = dict(zip(COLUMNS, log[-1], strict=True))
    if not math.isfinite(terms["total"]):
        raise UserError(
            f"{path}, step {len(log)}: the loss is not finite, {terms}; train again with a lower "
            "--lr or --amp off, in another --out"
        )
    state = {key: part.state_dict() for key, part in parts.items()}
    state["log"] = torch.tensor(log, dtype=torch.double)
    state["options"] = run_options(path, args)
    try:
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        header = ",".join(COLUMNS)
        np.savetxt(path.with_suffix(".csv"), log, "%.6g", ",", header=header, comments="")
    except (OSError, RuntimeError) as problem:  # a full disk is the one or the other
        raise UserError(f"{path}: can't be written ({problem}); go on by --resume") from None


def restore(path, parts):
    """Puts what a row's file says of its parts into them, if there is one -> its log."""
    if not path.exists():
        return []
    state, _ = load(path)
    for key, part in parts.items():
        part.load_state_dict(state[key])
    log = state["log"].tolist()
    if RANK == 0:
        print(f"{path}: goes on after step {len(log)}")
    return log


def run_options(path, args):
    """A row's name and its RUN_OPTIONS, see there."""
    return {"row": path.stem} | {name: getattr(args, name) for name in RUN_OPTIONS}


def load(path, device="cpu"):
    """A row's file -> its dict, and its network, frozen. Raises UserError. A pickle from a stranger
    may run any code, hence weights_only; a small file may claim to be wide, hence its own size."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; train first, or give a row's file as --weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        options = state["options"]
        width, inputs = state["net"]["down4.0.weight"].shape[:2]
        if 1000 * width**2 > os.path.getsize(path):
            raise ValueError("it can't be as wide as it says")
        net = MattingNet(width, guided=inputs == 4)
        net.load_state_dict(state["net"])
        finite = all(x.isfinite().all() for x in net.state_dict().values())
        complete = {"optimizer", "scaler", "log"} < state.keys() and "files" in options
        if not finite or not complete or not 32 <= options["size"] < 10**5:
            raise ValueError("its weights or options")
    except Exception as problem:  # a damaged or hostile file makes torch raise what it likes
        reason = str(problem)[:80]
        raise UserError(
            f"{path}: not a whole file of mlb.py ({reason}); give another, or delete this row"
        ) from None
    net = net.to(device, memory_format=torch.channels_last)
    return state, net.eval().requires_grad_(False)


def open_data(args):
    """The data set of --data: {use: paths, or tuples of them}. Raises UserError for what is
    missing, and for what evaluation can't read: it would spoil the end of a long run."""
    root = args.data
    photos, alphas = root / "segmentation/image", root / "segmentation/alpha"
    background = root / "matte/background"
    masks = pairs(photos, root / "segmentation/mask")[: args.masks or None]
    truths = dict(pairs(photos, alphas)) if alphas.is_dir() else {}
    known = [(photo, truths[photo], mask) for photo, mask in masks if photo in truths]
    data = {
        "mattes": pairs(root / "matte/foreground", root / "matte/alpha")[: args.mattes or None],
        "backgrounds": find_pictures(background) if background.is_dir() else [],
        "masks": masks,
        "tests": pairs(root / "test/image", root / "test/alpha"),
        "true mattes": [(photo, truth) for photo, truth, _ in known],
        # of thousands it would take hours; without truths there are three to look at
        "known": known[:100] or [(photo, mask, mask) for photo, mask in masks[:3]],
    }
    for photo, *labels in data["tests"] + data["known"]:
        for label in labels:
            read_pair(photo, label)
    return data


def fingerprint(root):
    """A number for the pictures of a data set, by name and size, wherever it lies."""
    sizes = [
        (path.relative_to(root).parts, path.stat().st_size)
        for part in ("matte", "segmentation", "test")
        for path in find_pictures(root / part)
    ]
    return zlib.crc32(repr(sizes).encode())


@contextlib.contextmanager
def locked(folder):
    """Holds a folder while a block runs. Raises UserError where another process holds it."""
    if fcntl is None or RANK > 0:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"{folder}: another run writes there; take another --out") from None
    try:
        yield
    finally:
        os.close(handle)


def refuse_another_run(out, names, seeds, args):
    """Raises UserError where --out holds what this command would write over or not go on with."""
    if not args.resume and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; take another --out, or --resume the run in it")
    rows = [f"{name}.{seed}.pt" for name in names for seed in seeds]
    for path in sorted(out.glob("*.pt")):
        if path.name not in rows:
            raise UserError(f"{path}: of another command or seed; take another --out")
        made, asked = load(path)[0]["options"], run_options(path, args)
        changed = [name for name in asked if made.get(name) != asked[name]]
        if changed:
            raise UserError(f"{path}: made with {made}; {changed} must stay, or take another --out")


# == 5  Evaluation: the field's metrics, the boundary's MAD, tables and pictures =================
# Matting's claims live in a few percent of the pixels, which MSE hardly sees: hence a MAD of these.

SCALES = {"SAD": 1, "MSE": 1000, "MAD": 1000, "Grad": 1, "Boundary MAD": 1000}  # of tables
SHOWN_AS = {  # titles of sheets, whose font has neither ′ nor α
    "labels S": "mask S",
    "labels M′": "teacher's M'",
    "boundary′": "boundary alpha'",
    "labels B": "label B",
}
CELL = 228  # of sheets: a picture of 224 pixels and a margin
GUTTER = 20  # between panels that lie side by side


def gradient(x):
    """|∇x| of an H×W array, H×W, by the first derivatives of a Gaussian with σ = 1.4 pixels.
    Edges should be as steep as the truth's, not only near it (Rhemann et al., CVPR 2009)."""
    t = np.arange(-6, 7)  # 6 are 4 σ
    smooth = np.exp(-0.5 * (t / 1.4) ** 2)
    smooth /= smooth.sum()
    slope = t / 1.4**2 * smooth
    windows = np.lib.stride_tricks.sliding_window_view
    x = np.pad(x, 6, mode="symmetric")  # mirrored at the border
    columns = windows(x, 13, axis=0)
    down = windows(columns @ slope, 13, axis=1) @ smooth
    across = windows(columns @ smooth, 13, axis=1) @ slope
    return np.hypot(down, across)


def metrics(prediction, truth):
    """SAD, MSE, MAD and Grad of two H×W arrays in [0, 1], as P3M (Li et al. 2021) reports them:
    whole image, SAD in thousands, Grad in tens, MSE and MAD per pixel; and the MAD of the boundary,
    the pixels within 2 of 0.05 < truth < 0.95 (nan where there are none). -> {name: number}, names
    as in SCALES. Raises ValueError where shapes differ."""
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"metrics: two H×W arrays, not {prediction.shape} and {truth.shape}")
    error = np.abs(prediction - truth)
    # not boundary_label: who tries other thresholds there must not move the yardstick
    boundary = Image.fromarray((truth > 0.05) & (truth < 0.95)).convert("L")
    near = np.asarray(boundary.filter(ImageFilter.MaxFilter(5))) > 0
    return {
        "SAD": error.sum() / 1000,
        "MSE": (error**2).mean(),
        "MAD": error.mean(),
        "Grad": ((gradient(prediction) - gradient(truth)) ** 2).sum() / 10,
        "Boundary MAD": error[near].mean() if near.any() else math.nan,
    }


def to_picture(x):
    """A tensor 3×H×W or H×W in [0, 1] as an RGB or L picture."""
    array = to_bytes(255 * x.numpy())
    return Image.fromarray(array.transpose(1, 2, 0) if array.ndim == 3 else array)


def to_tensor(picture):
    """An RGB or L picture as a tensor 3×H×W or 1×H×W in [0, 1]."""
    array = np.atleast_3d(np.array(picture, np.float32)) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def predict(net, photo, size, mask=None):
    """Matte and boundary of an RGB picture, 2×H×W in [0, 1] at its own size.
    size: that of the pictures the net was trained on. A guided one needs a mask, an L picture."""
    shown = (1 + SMALLEST_CROP) / 2  # of a photo's short side, on average, in training
    scale = size / shown / min(photo.size)
    sides = [max(32, 32 * round(scale * side / 32)) for side in photo.size]
    seen = [photo] if mask is None else [photo, mask]
    x = torch.cat([to_tensor(picture.resize(sides, Image.BILINEAR)) for picture in seen])
    x = x[None].to(next(net.parameters()).device, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = False  # it would try all kernels on each new size
    with torch.inference_mode():
        maps = torch.cat(net(x[:, :3], x[:, 3:]), dim=1).float().sigmoid()
        maps = F.interpolate(maps, photo.size[::-1], mode="bilinear", antialias=True)
    return maps[0].cpu()


def views_of(nets, size, photo_path, truth_path, mask_path=None):
    """{title: tensor} of a picture: photo, what comes of it, truth. Of a test picture the networks'
    mattes, but it has no mask for guided ones; of a photo of D_s labels, S and its teachers'."""
    photo, truth = read_pair(photo_path, truth_path)
    photo = photo.resize(truth.size)
    views = {"photo": to_tensor(photo)}
    if mask_path is None:
        for name, net in nets.items():
            if not net.guided:
                views[name] = predict(net, photo, size)[0]
    else:
        mask = read(mask_path, label=True).resize(truth.size)
        S = to_tensor(mask)  # 1×H×W, so that a changed blend may pool, see exercise 18
        views["labels S"] = S
        for name, net in nets.items():
            if "teacher" in name:
                kind = " guided" if net.guided else ""
                M_t, alpha_t = predict(net, photo, size, mask)
                B = guided_blend(M_t, alpha_t, S) if net.guided else blend(M_t, alpha_t, S)
                views["labels M′" + kind] = M_t
                views["boundary′" + kind] = alpha_t
                views["labels B" + kind] = B
    views["truth"] = to_tensor(truth)
    return {title: x.squeeze(0) for title, x in views.items()}


def evaluate(nets, items, size, sheet=None):
    """{title: mean metrics} of items, see open_data. A sheet shows the picture with most hair and
    the one on which the columns, the truth among them, differ most."""
    found = defaultdict(list)
    shown = {}
    for count, paths in enumerate(items, start=1):
        views = views_of(nets, size, *paths)
        truth = views["truth"]
        mattes = [truth]
        for title in views:
            if title not in ("photo", "truth", "labels M′ guided") and "boundary′" not in title:
                found[title].append(metrics(views[title], truth))
                mattes.append(views[title])
        if sheet:
            contrast = gradient(views["photo"].mean(dim=0))  # as far as one sees hair
            hair = boundary_label(truth) * torch.from_numpy(contrast)
            spread = torch.stack(mattes).std(dim=0)
            for name, where, part in (
                ("photo: most hair", hair, 0.3),
                ("photo: most disputed", spread, 0.6),  # mistakes are larger than strands
            ):
                if name not in shown or where.mean() > shown[name][1].mean():
                    shown[name] = views, where, part
        if count % 50 == 0:
            print(f"evaluation: {count} of {len(items)} pictures")
    if sheet:
        save_sheet(shown, sheet)
    means = defaultdict(dict)
    for title, scores in found.items():
        for key in SCALES:
            means[title][key] = torch.tensor([score[key] for score in scores]).nanmean().item()
    return means


def table(scores):
    """{row: [metrics, one per seed]} as a Markdown table: mean ± standard deviation (n − 1)."""
    titles = [key if scale == 1 else f"{key} e-3" for key, scale in SCALES.items()]
    lines = [["", *titles], ["---"] + ["---:"] * len(titles)]
    for name, seeds in scores.items():
        cells = [name]
        for key, scale in SCALES.items():
            values = [scale * score[key] for score in seeds]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}")
        lines.append(cells)
    return "\n".join("| " + " | ".join(f"{cell:>17}" for cell in line) + " |" for line in lines)


def frame(where, part):
    """Where a map H×W is highest: (left, top, right, bottom) of a square, as large as a part of the
    short side. Averaged twice: what lies in its middle counts most."""
    side = int(part * min(where.shape))
    half = side // 2
    share = F.avg_pool2d(where[None], half, stride=1)
    share = F.avg_pool2d(share, side - half + 1, stride=1)[0]
    top, left = divmod(share.argmax().item(), share.shape[1])
    return left, top, left + side, top + side


def panel(name, views, where, part):
    """Views {"photo": 3×H×W, title: H×W, ...} as columns of an RGB picture. Row 1: whole, on the
    photo a frame, a part of the short side, where the map `where`, H×W, is highest. Row 2: the
    frame, mattes as their square root, so that faint strands are seen. Where all are mattes, row 3:
    what each cuts out there, on green."""
    line = 34  # of text
    all_mattes = not any("boundary" in title for title in views)
    said = "row 2: the frame, mattes brightened"
    if all_mattes:
        said += "; row 3: cut out with each matte"
    rows = 3 if all_mattes else 2
    page = Image.new("RGB", (CELL * len(views) + GUTTER, CELL * rows + 2 * line), "lightgrey")
    draw = ImageDraw.Draw(page)
    box = frame(where, part)
    photo = to_picture(views["photo"])
    green = Image.new("RGB", photo.size, (128, 204, 153))
    unused = int(224 * max(0, 1 - photo.height / photo.width))  # of row 1, if it is a landscape
    bottom = page.height - unused - line // 2
    draw.text((8, bottom), said, "black", anchor="lm", font_size=20)
    for k, (title, x) in enumerate(views.items()):
        whole = to_picture(x)
        if title == "photo":
            title = name
            cells = [whole, whole.crop(box)]
            thick = 2 + max(whole.size) // 128  # about 2 pixels of the cell, and 1 outside
            for outline, width in (("white", thick + 1), ("red", thick)):  # seen on red, too
                ImageDraw.Draw(whole).rectangle(box, outline=outline, width=width)
        else:
            bright = x if "boundary" in title else x.sqrt()
            cells = [whole, to_picture(bright).crop(box)]
            if all_mattes:
                cells.append(Image.composite(photo, green, whole).crop(box))
        title = SHOWN_AS.get(title, title.replace("′", "'"))
        draw.text((CELL * k + 112, line // 2), title, "black", anchor="mm", font_size=20)
        for j, picture in enumerate(cells):
            picture = ImageOps.pad(picture, (224, 224), Image.NEAREST, "lightgrey", (0.5, 0))
            page.paste(picture, (CELL * k, line + CELL * j - (unused if j else 0)))
    return page


def save_sheet(pictures, path):
    """Saves panels of {name: (views, where, part)}: of up to four columns side by side, as slides
    are wide, of more one below the other."""
    panels = [panel(name, *parts) for name, parts in pictures.items()]
    join = np.hstack if panels[0].width < 5 * CELL else np.vstack
    page = join(panels)[:, :-GUTTER]
    Image.fromarray(page).save(path, compress_level=1)


def save_batch(image, mask, target, natural, label, path):
    """What a row's network is shown first, as batch.png beside its file: of a batch the natural
    photo, with the row's label of ROWS, and the composite with most hair."""
    image, mask, target = image.cpu(), mask.cpu(), target.cpu()
    pictures = {}
    for k, x in enumerate(target.squeeze(1)):
        views = {"photo": image[k]}
        if not torch.equal(mask[k, 0], x):
            views["mask S"] = mask[k, 0]
        letter = label if natural[k] else "M"
        views[f"label {letter}"] = x
        views[f"boundary of {letter}"] = boundary_label(x)
        near = F.max_pool2d(mask[k], 15, stride=1, padding=7)[0]  # farther are false outlines
        hair = x * (1 - x) * (2 * near - 1)
        dense = F.avg_pool2d(hair[None], 9, stride=1, padding=4)[0]  # outlines are thin
        hair = hair * dense.abs()
        name = "composite"
        if natural[k]:  # grey that one does not see is the teacher's doubt
            name = "natural photo"
            hair = hair * torch.from_numpy(gradient(image[k].mean(dim=0)))
        if name not in pictures or hair.mean() > pictures[name][1].mean():
            pictures[name] = views, hair, 0.4
    part = path.with_suffix(".png")  # rows that train side by side draw one each
    save_sheet(pictures, part)
    os.replace(part, path.with_name("batch.png"))


def trained_net(args):
    """The network of --weights, and the size it sees: that of --size or of its training."""
    state, net = load(args.weights, args.device)
    if net.guided:
        raise UserError(f"{args.weights}: a guided teacher needs masks; give another row's file")
    with contextlib.suppress(UserError):  # without data_sample nobody can tell
        if args.run is matte and state["options"]["files"] == fingerprint(SAMPLE):
            note("these weights have seen drawn people alone: a real photo comes out in pieces")
    return net, args.size or state["options"]["size"]


def print_metrics(args):
    """The metrics of one network on the test pictures of --data."""
    net, size = trained_net(args)
    tests = pairs(args.data / "test/image", args.data / "test/alpha")
    found = evaluate({args.weights.name: net}, tests, size)
    print(table({name: [means] for name, means in found.items()}))


# == 6  Benchmark: frames per second, and what each step towards them buys =======================


def fold(net):
    """A copy with each batch norm folded into the convolution before it, the same function: in eval
    mode batch norm is a scale and a shift per channel, and so are a kernel and its bias."""
    net = copy.deepcopy(net)
    for block in net.children():
        if isinstance(block, nn.Sequential):
            block[0] = fuse_conv_bn_eval(block[0], block[1])
            block[1] = nn.Identity()
    return net


def seconds_of(run, x, device):
    """Seconds that run(x) takes. CUDA kernels run on after the launch: the clock waits for them."""
    wait = torch.get_device_module(device).synchronize
    wait()
    start = time.perf_counter()
    run(x)
    wait()
    return time.perf_counter() - start


def time_in_turn(ladder, device):
    """Median milliseconds of {name: (run, x)}, in turn: a slow moment of the machine hits all."""
    times = {name: [] for name in ladder}
    for _ in range(40):
        for name, (run, x) in ladder.items():
            times[name].append(seconds_of(run, x, device))
    return {name: 1000 * np.median(times[name][4:]) for name in times}  # warm by then


@torch.no_grad()
def bench(args):
    """Times a ladder of networks, then bytes to bytes with the fastest. The difference is the
    matte's largest change against fp32."""
    torch.backends.cudnn.allow_tf32 = False  # by default convolutions round fp32
    net = MattingNet(args.width).eval()
    if args.weights:
        net, _ = trained_net(args)
    plain = copy.deepcopy(net).to(args.device, memory_format=torch.contiguous_format)
    net = net.to(args.device, memory_format=torch.channels_last)
    half = torch.bfloat16 if args.device == "cpu" else torch.float16
    folded_half = fold(net).to(half)
    frame = torch.randint(256, (1, args.size, args.size, 3), dtype=torch.uint8)
    frame = frame.permute(0, 3, 1, 2)  # channels-last, as cameras give it
    x = frame.to(args.device) / 255
    x_half = x.to(half)
    ladder = {
        "fp32": (plain, x.contiguous()),
        "+ channels-last": (net, x),
        "+ batch norm folded": (fold(net), x),
        "+ 16-bit weights": (folded_half, x_half),
    }
    if "cuda" in args.device:  # its kernels are launched as one
        graph = torch.cuda.make_graphed_callables(copy.deepcopy(folded_half), (x_half.clone(),))
        ladder["+ CUDA graph"] = graph, x_half
    if args.compile:
        ladder["+ compile"] = torch.compile(folded_half, mode="reduce-overhead"), x_half
    torch.backends.cudnn.benchmark = True  # one size: try all kernels, keep the fastest
    times = time_in_turn(ladder, args.device)
    fastest, fastest_x = ladder[min(times, key=times.get)]

    def end_to_end(frame):
        """What a video call pays for: bytes in, bytes out."""
        logits, _ = fastest(frame.to(args.device).to(fastest_x.dtype) / 255)
        return (255 * logits.float().sigmoid()).round().byte().cpu()

    times |= time_in_turn({"end to end, in bytes": (end_to_end, frame)}, args.device)
    threads = torch.get_num_threads()
    print(f"{args.device}, torch {torch.__version__}, {threads} threads, {args.size}x{args.size}")
    exact = plain(x)[0].sigmoid()
    for name, ms in times.items():
        run, given = ladder.get(name, (fastest, fastest_x))
        difference = (run(given)[0].float().sigmoid() - exact).abs().max()
        print(f"{name:20} {ms:8.2f} ms {1000 / ms:8.1f} FPS   difference {difference:.4f}")
    print("A + adds to the row above; end to end takes the fastest; difference: from fp32's matte.")
    print("A CPU without 16-bit units computes 16-bit weights more slowly than fp32.")


# == 7  Matting: a person cut out of one's own photo =============================================
# A strand's pixel holds hair and old background: a halo, unless the colour of hair is estimated.


def blur(x, radius):
    """Box blur of C×H×W: means over 7×7 cells of a grid whose cells are a third of the radius wide.
    At the edges the mean is over what there is: zeros would darken them."""
    grid = [max(1, 3 * side // radius) for side in x.shape[1:]]
    cells = F.adaptive_avg_pool2d(x, grid)[None]
    cells = F.avg_pool2d(cells, kernel_size=7, stride=1, padding=3, count_include_pad=False)
    return F.interpolate(cells, x.shape[1:], mode="bilinear")[0]


def estimate_foreground(image, alpha):
    """The foreground of which a background and alpha made the image, see composite; 3×H×W, alpha
    1×H×W, in [0, 1]. Forte (ICIP 2021): the foreground is blurred weighted by alpha, the background
    by 1 − alpha; then the foreground moves by alpha times what their composite lacks of the image,
    and is clipped. All this widely, with radius 90, then narrowly, with 6."""
    foreground = background = image
    for radius in (90, 6):
        share = blur(alpha, radius)
        foreground = blur(foreground * alpha, radius) / (share + 1e-5)
        background = blur(background * (1 - alpha), radius) / (1 - share + 1e-5)
        error = image - composite(foreground, alpha, background)
        foreground = (foreground + alpha * error).clip(0, 1)
    return foreground


def cut_out(net, size, photo):
    """The person of an RGB picture, RGBA: alpha is the matte, colours are the person's alone."""
    alpha = to_picture(predict(net, photo, size)[0])
    coarse = max(1, min(photo.size) // 512)  # colours are smooth where alpha is not 1
    small = [to_tensor(picture.reduce(coarse)) for picture in (photo, alpha)]
    person = to_picture(estimate_foreground(*small)).resize(photo.size)
    person.paste(photo, mask=alpha.point(lambda value: 255 * (value == 255)))
    person.paste("black", mask=alpha.point(lambda value: 255 * (value == 0)))  # nobody's colours
    person.putalpha(alpha)
    return person


def photos_among(paths, out):
    """{real path: path} of photos, and of those in folders but not in out: an earlier run has made
    these."""
    photos = {}
    for path in paths:
        found = [path]
        if path.is_dir():
            with contextlib.suppress(UserError):  # an empty one will be named among what fails
                found = [p for p in find_pictures(path) if p.parent.resolve() != out.resolve()]
        photos |= {photo.resolve(): photo for photo in found}
    if not photos:
        raise UserError(f"{out}: all photos lie there; take another --out")
    return photos


def matte(args):
    """Writes cut-outs of photos and of folders of them to OUT/NAME.png. What fails is named, and
    the rest go on; no photo is written over."""
    net, size = trained_net(args)
    args.out.mkdir(parents=True, exist_ok=True)
    photos = photos_among(args.photos, args.out)
    written = set()
    for path in photos.values():
        target = args.out / f"{path.stem}.png"
        part = target.with_suffix(".part")
        try:
            if target in written or target.resolve() in photos:
                raise UserError(f"the name of {path} is taken; rename it")
            if target.exists() and Image.open(target).mode != "RGBA":
                raise UserError("is there and no cut-out; take another --out")
            cut_out(net, size, read(path)).save(part, "PNG", compress_level=1)
            os.replace(part, target)
        except (UserError, OSError) as problem:
            complain(f"{target}: {problem}")
            continue
        written.add(target)
        print(target)
    failed = len(photos) - len(written)
    if failed:
        raise UserError(f"{failed} of {len(photos)} photos failed; the rest is in {args.out}")


# == 8  Command line =============================================================================


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line, and an option has its whole name."""

    def __init__(self, **more):
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(formatter_class=formatter, allow_abbrev=False, **more)

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def between(kind, least, most=10**9):
    """The type of an option: a number of a kind from least to most."""

    def number(text):
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return number


positive, whole = between(int, 1), between(int, 0)
pixels, channels = between(int, 1, 8192), between(int, 1, 512)


def add_network(add, size):
    """The options of what makes a network."""
    add("--size", type=pixels, default=size, help="side of a picture, a multiple of 32")
    add("--width", type=channels, default=32, help="channels of the first stage")
    add("--compile", action="store_true", help="torch.compile the network")


def add_training_options(add, out):
    """The options that train and compare share."""
    add_network(add, 128)
    add("--out", type=Path, default=out, help="folder for all that is written")
    add("--data", type=Path, default=SAMPLE, help="folder of the data set")
    add("--mattes", type=whole, default=0, help="use so many of D_m; 0: all")
    add("--masks", type=whole, default=0, help="use so many of D_s; 0: all")
    add("--batch", type=positive, default=8, help="pictures in a step, over all ranks")
    add("--teacher-steps", type=positive, default=1500, help="steps of a teacher")
    add("--steps", type=positive, default=1200, help="steps of a student")
    add("--lr", type=between(float, 0), default=3e-3, help="highest learning rate")
    add("--weight-decay", type=between(float, 0), default=1.0, help="of the kernels")
    add("--mix", type=between(float, 0, 1), default=0.25, help="a student's share of composites")
    add("--amp", choices=["auto", *HALF], default="auto", help="auto: bf16 or fp16 on CUDA")
    add("--workers", type=whole, help="processes that load data; None: 0, on a GPU up to 8")
    add("--resume", action="store_true", help="go on with the run in --out")


def add_weights(add):
    """The options of what uses trained weights."""
    add("--weights", type=Path, default="runs/mlb/MLB.0.pt", help="a row's file")
    add("--size", type=whole, default=0, help="side of its training pictures; 0: as in the file")


def parse(argv=None):
    """The options of a command line. Raises UserError."""
    parser = Parser(prog="mlb", description="Matte Label Blending; README tells more.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, text):
        p = commands.add_parser(name, help=text, description=text)
        p.set_defaults(run=run)
        p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
        return p.add_argument

    add = command("train", train, "train a teacher and its student")
    add("--seed", type=whole, default=0, help="of everything random")
    add("--guide", action="store_true", help="our extension: a teacher that sees the mask")
    add_training_options(add, "runs/mlb")

    add = command("compare", train, "does the blending help? train every row, over seeds")
    add("--seeds", type=positive, default=3, help="how many seeds, from 0")
    add_training_options(add, "runs/compare")

    add = command("eval", print_metrics, "the metrics of trained weights on the test pictures")
    add("--data", type=Path, default=SAMPLE, help="folder of the data set")
    add_weights(add)

    add = command("bench", bench, "frames per second, and what each step towards them buys")
    add("--weights", type=Path, help="a row's file; None: random weights, as fast")
    add_network(add, 512)

    add = command("matte", matte, "cut the person out of photos, or of folders of them")
    add("photos", nargs="+", type=Path, metavar="PHOTO", help="photos or folders")
    add("--out", type=Path, default="cutouts", help="folder for the pictures")
    add_weights(add)
    return parser.parse_args(argv)


def settle(args):
    """Settles what "auto" left to us, and refuses what can't be."""
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.version.cuda and args.device == "cpu" and os.path.exists("/proc/driver/nvidia"):
            note("there is an NVIDIA driver, but no GPU that torch can use: is it too old?")
    if args.device == "cuda":  # torchrun gives each rank a GPU
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if not re.fullmatch(r"cpu|mps|cuda:\d+", args.device):
        raise UserError(f"--device {args.device}: take auto, cpu, cuda, cuda:1 or mps")
    try:
        torch.empty(1, device=args.device)
    except Exception:  # torch has many kinds, and some are pages long
        raise UserError(f"--device {args.device}: torch can't use it here") from None
    if args.command not in ("eval", "matte") and args.size % 32:
        raise UserError(f"--size {args.size}: the network takes multiples of 32")
    if args.run is train:
        on_cpu = args.device == "cpu"
        if args.device == "mps":
            raise UserError("--device mps: batch norm learns wrongly there (pytorch issue 175189)")
        if args.amp == "auto":
            half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            args.amp = "off" if on_cpu else half
        if args.workers is None:
            args.workers = 0 if on_cpu else min(8, os.cpu_count())
        per_rank, rest = divmod(args.batch, WORLD_SIZE)
        if rest or (per_rank, args.size) == (1, 32):  # 1/32 of 32: batch norm of a single value
            raise UserError(f"--batch {args.batch}: too small, or no multiple of the ranks")
    if {"RANK", "WORLD_SIZE"} & os.environ.keys() and "MASTER_ADDR" not in os.environ:
        raise UserError("RANK or WORLD_SIZE is set, but not by torchrun: unset both")


def complain(problem):
    """What the user can put right, as one line on standard error."""
    text = str(problem).rsplit("UserError: ", 1)[-1]  # a worker's has its traceback before it
    print("mlb: error:", text.strip().replace("\n", " "), file=sys.stderr)


def main(argv=None):
    """Runs a command -> exit status: 0, or 2 after an error of the user's."""
    warnings.filterwarnings("ignore", module="PIL")  # what matters of them is an error of ours
    try:
        args = parse(argv)
        settle(args)
        gpu = torch.device(args.device) if "cuda" in args.device else None
        if gpu:
            torch.cuda.set_device(gpu)
        if WORLD_SIZE > 1:
            a_day = 48 * distributed.default_pg_timeout  # the first rank evaluates alone
            distributed.init_process_group("nccl" if gpu else "gloo", timeout=a_day, device_id=gpu)
        args.run(args)
        if WORLD_SIZE > 1:  # after success alone: on any other way out torchrun ends the others
            distributed.barrier()
            distributed.destroy_process_group()
    except torch.OutOfMemoryError:
        complain("out of memory; lower --batch or --size")
        return 2
    except (UserError, OSError) as problem:
        complain(problem)
        return 2
    return 0


if __name__ == "__main__":
    # a terminal without Greek shows α as ?; progress is seen in files and pipes too
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        status = main()
    except KeyboardInterrupt:
        print("\nmlb: stopped; train and compare go on by --resume", file=sys.stderr)
        status = 130
    sys.stdout.flush()
    os._exit(status)  # at once, whatever other rows' threads are at: files are whole

# Copyright (c) 2026 the authors of mlb. SPDX-License-Identifier: MIT
"""Matte Label Blending (MLB): weakly semi-supervised human matting in one file, to read beside
Kim, Yi, Yu, Yoo, Hwang: Towards Label-Efficient Human Matting (arXiv 2404.00921).

A few composites with exact mattes (D_m) train a teacher. Many natural photos with cheap, coarse
masks (D_s) then train a real-time student, whose labels take semantics from the mask and hair
from the teacher:

    M       matte label, in [0, 1]          α       its boundary: 1 where 0.05 < M < 0.95, else 0
    M′, α′  the teacher's two outputs       S       segmentation label, 0 or 1, without hair
    B       blended label: α′·M′ + (1 − α′)·S

Deviations. The paper's text was not at hand: the formulas of α and B are our reading of summaries.
Ours, where we knew nothing: network, losses and weights, augmentation, an α′ that is used soft, a
student that starts from scratch, sees D_m too (the dataset mixer) and learns the boundary of B. An
extension, in rows of its own: a guided teacher, which sees S as well.
"""
import argparse
import copy
import functools
import glob
import json
import math
import os
import pathlib
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps
from torch import distributed, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

class UserError(Exception):
    """What the user can put right: main says it in one line and exits with status 2."""

def need(condition, text):
    """Raises UserError where a condition does not hold; the text names the file and the way out."""
    if not condition:
        raise UserError(text)

@functools.cache
def note(text):
    """One line on standard error that is no error, said once by each process."""
    print("mlb: note: " + text.replace("\n", " "), file=sys.stderr, flush=True)

# == 1  Data: pairs, decoding, compositing, augmentation, the dataset mixer ======================
# Composites have exact mattes but look unnatural: light, noise and clutter narrow that gap. Random
# numbers are numpy's, pictures bytes: threads change no bit of a sample (but do of a training).

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no PostScript, whatever a suffix says
SMALLEST_WINDOW = 0.7  # a training picture shows from 0.7 to 1 of a photo's short side
REMEMBERED = 160  # decoded pictures that are kept; of a longer list, none

def composite(foreground, alpha, background):
    """The compositing equation I = αF + (1 − α)B (Porter & Duff 1984), for arrays that broadcast.
    Here α is the matte, in [0, 1], as the field writes it; section 3 has the paper's letters."""
    return alpha * foreground + (1 - alpha) * background

def pictures(folder):
    """Pictures below a folder, links followed, as {stem: path}; strays (._x.jpg) are skipped."""
    found = {}
    for name in sorted(glob.glob("**", root_dir=folder, recursive=True)):
        path = pathlib.Path(folder, name)
        if Image.registered_extensions().get(path.suffix.lower()) in FORMATS:
            other = found.setdefault(path.stem, path)
            need(other == path, f"{path}: of the same name as {other}; rename one")
    need(found, f"{folder}: no pictures there; a data set has the layout of data_sample")
    return found

def pairs(images, labels):
    """Pairs the pictures of two folders by file stem: [(image path, label path), ...]. What has no
    partner is left out and counted in a note; no pair at all is an error."""
    first, second = pictures(images), pictures(labels)
    need(first.keys() & second.keys(), f"{images}: no name of a picture stands in {labels} too")
    alone = [str((first | second)[stem]) for stem in sorted(first.keys() ^ second.keys())]
    if alone:
        note(f"{len(alone)} pictures have no partner and are left out: {', '.join(alone[:3])} ...")
    return [(path, second[stem]) for stem, path in first.items() if stem in second]

def read(path, label=False, short=0):
    """A picture file, upright: a photo as RGB; a label (matte or mask) as L, 255 for the person.
    short: the short side in pixels that is enough, faster to decode. Raises UserError."""
    need(os.path.isfile(path), f"{path}: no such file; give another")  # a pipe would hang
    try:
        # an opened file, not its path: Pillow would map grey TIFF files, and forget to turn them
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            image.draft(None, [short or 10 ** 6] * 2)
            image = ImageOps.exif_transpose(image)
    except Exception as problem:  # decoders raise what they like on a damaged file
        raise UserError(f"{path}: can't be decoded ({problem}); replace it or take it out")
    (low, high), mode = sorted(image.size), image.mode
    need(16 <= low and high <= 16 * low, f"{path}: {low}x{high} pixels show no one; take it out")
    need(mode[0] not in "IF", f"{path}: of 16 bits or more (mode {mode}); save it with 8")
    image = as_label(image, path) if label else image.convert("RGB")
    return image.reduce(max(1, low // short)) if short else image

def as_label(image, path):
    """A decoded label as L, 0 to 255; what could mean several things is refused, not guessed."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255:
        image = image.getchannel("A")  # AISegment keeps its mattes there
    elif image.mode in ("RGB", "RGBA") and not np.ptp(np.asarray(image)[..., :3], axis=2).any():
        image = image.getchannel(0)
    most = image.convert("L").getextrema()[1]
    need(image.mode in ("L", "1") and not 1 < most < 128, f"{path}: colours, a palette or class "
         f"numbers ({image.mode}, at most {most}); save it as 8-bit grey, 255 for the person")
    return image.convert("L").point(lambda value: 255 * value if most == 1 else value)

def read_pair(photo, label=None, short=0):
    """A photo as bytes H×W×3, see read; its label, if any, is the fourth channel, H×W×4. Raises
    UserError where their aspects differ by over 2 %: they can't belong together."""
    image = read(photo, short=short)
    if label:
        matte = read(label, True, short)
        aspects = matte.width / matte.height, image.width / image.height
        need(abs(aspects[0] / aspects[1] - 1) <= 0.02 + 0.5 / min(image.size),  # sides are rounded
             f"{label}: {matte.size}, but {photo}: {image.size}; take out one of them")
        image.putalpha(matte.resize(image.size))
    return np.array(image)

read_once = functools.lru_cache(REMEMBERED)(read_pair)

def degrade(image, rng):
    """A picture, bytes H×W×3, under other light, 3 of 10 out of focus, 3 of 10 noisy: 3×H×W."""
    if rng.random() < 0.3:
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(rng.uniform(0, 2))))
    tint, curve = rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3), rng.uniform(-0.3, 0.3)
    x = np.linspace(0, 1, 256)  # what a level becomes: nearly a gamma, by a parabola
    light = np.outer(tint, 255 * x * (1 + curve - curve * x)).round().clip(0, 255).astype(np.uint8)
    image = np.stack([light[k].take(image[..., k]) for k in range(3)])
    if rng.random() < 0.3:
        noise = rng.uniform(0, 38) * (rng.random(image.shape, np.float32) - 0.5)
        image = (image + noise).round().clip(0, 255).astype(np.uint8)
    return image

def clutter(background, rng):
    """A background, bytes H×W×3, 7 of 10 with shapes drawn on it: trained on plain ones alone, a
    teacher takes every edge, and all that is hairy, for a person."""
    picture = Image.fromarray(background)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 8) if rng.random() < 0.7 else 0):
        colour, kind = tuple(rng.integers(0, 256, 3).tolist()), rng.integers(4)
        corner, size = picture.width * rng.uniform([[-0.2], [0.05]], [[1], [0.6]], (2, 2))
        if kind == 0:
            draw.ellipse([*corner, *corner + size], colour)
        elif kind == 1:
            draw.rectangle([*corner, *corner + size], colour)
        elif kind == 2:  # a twig
            points = corner + size * rng.random((rng.integers(3, 20), 2))
            draw.line(points.ravel().tolist(), colour, int(rng.integers(1, 4)))
        else:  # a ball of fur: 60 tips, and 60 points between them that reach less far
            angle, reach = np.linspace(0, 2 * np.pi, 120), rng.uniform(0.3, 60 * [0.4, 0.7])
            fur = 0.5 + np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)
            draw.polygon((corner + size * fur).ravel().tolist(), colour)
    return np.asarray(picture)

def hurried_mask(matte, rng):
    """A mask of 0 and 255 as a hurried annotator might click it, for a matte, bytes H×W: blurred,
    cut at a level that differs from place to place, at a lower resolution (our extension)."""
    size = matte.shape[::-1]
    soft = ImageFilter.GaussianBlur(rng.uniform(0.5, 2) * size[0] / 128)
    level = Image.fromarray(rng.integers(100, 240, (8, 8), np.uint8)).resize(size, Image.BICUBIC)
    inside = np.asarray(Image.fromarray(matte).filter(soft)) > np.asarray(level)
    mask = Image.fromarray(np.uint8(255) * inside).reduce(int(rng.integers(1, 4)))
    return np.uint8(255) * (np.asarray(mask.resize(size, Image.BILINEAR)) > 127)

class Mixer(torch.utils.data.Dataset):
    """The dataset mixer of composites (D_m) and natural photos (D_s). Sample i is a pure function
    of (seed, i), to the last bit: a run resumes exactly, workers change nothing, ranks take every
    n-th. composites: (foreground, alpha) paths; backgrounds: paths, or none: photos as they are;
    naturals: (photo, label) paths; mix: share of composites, with hurried masks if guided."""
    def __init__(self, composites, backgrounds, naturals, mix, size, seed=0, guided=False):
        self.composites, self.naturals = composites, naturals
        self.backgrounds = [(path,) for path in backgrounds]
        self.mix, self.size, self.seed, self.guided = mix, size, seed, guided

    def __getitem__(self, i):
        """-> {"image": bytes 3×size×size, "target" (M or S), "mask": 1×size×size, "natural": bool}.
        Another draw takes the place of a file that can't be used; ten in a row raise UserError."""
        rng = np.random.default_rng((self.seed, i))
        for attempt in range(10):
            try:
                return self.draw(rng)
            except UserError as problem:
                need(attempt < 9, f"ten files in a row can't be used; the last: {problem}")
                note(f"{problem}; another sample takes its place")

    def draw(self, rng):
        """One sample; its target is taken before degrade: a matte has no light, blur or noise."""
        natural = bool(rng.random() >= self.mix)
        pair = self.window(self.naturals if natural else self.composites, rng)
        image, target = pair[..., :3], pair[..., 3]  # cut as one, so that they can't part
        if self.backgrounds and not natural:
            background = clutter(self.window(self.backgrounds, rng), rng)
            image = composite(image.astype("f4"), target[..., None] / np.float32(255), background)
            image = image.round().astype(np.uint8)
        image = degrade(image, rng)
        mask = hurried_mask(target, rng) if self.guided and not natural else target
        return {"image": image, "target": target[None], "mask": mask[None], "natural": natural}

    def window(self, items, rng):
        """What a random square of a random item shows, half of them mirrored: size×size×C."""
        decode = read_pair if len(items) > REMEMBERED else read_once
        item, short = items[rng.integers(len(items))], math.ceil(self.size / SMALLEST_WINDOW)
        whole = decode(*item, short=short)
        height, width, _ = whole.shape
        side = round(rng.uniform(SMALLEST_WINDOW, 1) * min(height, width))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        shown = torch.from_numpy(whole[top:top + side, left:left + side]).permute(2, 0, 1)[None]
        # torch resizes bytes three times as fast as Pillow, and a label beside the colours
        shown = F.interpolate(shown, (self.size,) * 2, mode="bilinear", antialias=True)[0]
        shown = shown.flip(2) if rng.random() < 0.5 else shown
        return shown.permute(1, 2, 0).numpy()

# == 2  Model: the compact real-time encoder-decoder =============================================
# A layer at full resolution costs 16 times one at a quarter: all work at a quarter or below.

def conv(inputs, outputs, stride=1, size=3):
    """Convolution, batch norm, ReLU: N×inputs×H×W -> N×outputs×H/stride×W/stride. No bias: batch
    norm has one. For inference the two fold into one convolution (see fold)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, (size - stride + 1) // 2, bias=False),
        nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

class MattingNet(nn.Module):
    """Images N×3×H×W in [0, 1] -> matte and boundary logits, N×1×H×W each; H, W multiples of 32.
    The stem turns a cell of 4×4 pixels, 48 values, into w channels: strands get lost. So the head
    gives each cell three weights; times a pixel's red, green and blue they add to its matte logit:
    a colour gate, the guided filter (He et al., ECCV 2010) learned. guided: masks are channel 4."""
    def __init__(self, width=32, guided=False):
        super().__init__()
        self.guided, w = guided, width
        self.down4 = conv(4 if guided else 3, w, 4, 4)  # quicker than pixel_unshuffle, 3×3
        self.down8 = conv(w, 2 * w, 2)
        self.down16 = conv(2 * w, 3 * w, 2)
        self.down32 = conv(3 * w, 4 * w, 2)
        self.deep32 = conv(4 * w, 4 * w)  # added to its input, as in He et al. (CVPR 2016)
        self.up32 = conv(4 * w, 3 * w)  # as wide as what it meets: no 1×1 laterals
        self.up16 = conv(3 * w, 2 * w)
        self.up8 = conv(2 * w, w)
        self.up4 = conv(w, w)
        self.head = nn.Conv2d(w, 16 + 4 + 3, 3, padding=1)  # matte, boundary, gate

    def forward(self, images, masks=None):
        x4 = self.down4(torch.cat([images, masks], 1) if self.guided else images)
        x8 = self.down8(x4)                                      # N, 2w, H/8, W/8
        x16 = self.down16(x8)                                    # N, 3w, H/16, W/16
        x32 = self.down32(x16)                                   # N, 4w, H/32, W/32
        x = self.up32(x32 + self.deep32(x32))
        x = self.up16(x16 + F.interpolate(x, scale_factor=2.0))  # nearest: quicker than bilinear
        x = self.up8(x8 + F.interpolate(x, scale_factor=2.0))
        x = self.up4(x4 + F.interpolate(x, scale_factor=2.0))
        matte, boundary, gate = self.head(x).split((16, 4, 3), 1)
        colours = F.pixel_unshuffle(images, 4).split(16, 1)      # three of N, 16, H/4, W/4
        for k in range(3):
            matte = torch.addcmul(matte, gate[:, k:k + 1], colours[k])
        boundary = F.pixel_shuffle(boundary, 2)                  # a region needs no more
        return F.pixel_shuffle(matte, 4), F.interpolate(boundary, scale_factor=2.0)

# == 3  MLB: the heart, in the paper's letters (α is the boundary here, M the matte) =============
# A prime marks what the teacher says: M_t is M′, alpha_t is α′. The loss serves both stages.

def boundary_label(M, low=0.05, high=0.95):
    """The boundary α of a matte M: 1 where low < M < high, else 0 (the paper's boundary label).
    M in [0, 1], of any shape; α has its shape and type. It is where detail is: hair, fur, blur."""
    return ((M > low) & (M < high)).to(M.dtype)

def blend(M_t, alpha_t, S):
    """The label B = α′·M′ + (1 − α′)·S: semantics from the segmentation, hair from the teacher.
    The teacher's matte M_t and boundary alpha_t and the segmentation S share a shape, in [0, 1]."""
    return alpha_t * M_t + (1 - alpha_t) * S

def laplacian_loss(prediction, target, levels=4):
    """Mean |difference| of two Laplacian pyramids, N×1×H×W: edges count at every scale. As in Hou &
    Liu (ICCV 2019), with box filters; each coarser level weighs twice as much."""
    difference = prediction - target  # the pyramid is linear: that of the difference will do
    total = 0
    for level in range(levels):
        coarse = F.avg_pool2d(difference, 2)
        fine = difference - F.interpolate(coarse, scale_factor=2, mode="nearest")
        total = total + 2 ** level * fine.abs().mean()
        difference = coarse
    return total / levels

def mlb_loss(matte_logits, boundary_logits, target, boundary):
    """The loss of either stage: named 0-d terms and their sum, "total". All N×1×H×W, target in
    [0, 1], boundary in {0, 1}. In fp32: a mean over a million pixels needs its digits."""
    # channels-last networks interleave their maps: contiguous, they are read faster
    matte_logits, boundary_logits, target, boundary = (
        x.float().contiguous() for x in (matte_logits, boundary_logits, target, boundary))
    matte = matte_logits.sigmoid()
    error = (boundary * (matte - target).abs()).sum((1, 2, 3))
    per_picture = error / boundary.sum((1, 2, 3)).clamp(min=1)
    # matte: semantics; laplacian: edges at every scale; detail: matte at the boundary; boundary: α
    terms = {"matte": F.binary_cross_entropy_with_logits(matte_logits, target),
             "laplacian": laplacian_loss(matte, target), "detail": per_picture.mean(),
             "boundary": F.binary_cross_entropy_with_logits(boundary_logits, boundary)}
    return terms | {"total": sum(terms.values())}

# == 4  Training: a row is a training, and its file is its checkpoint and its result =============
# Students of a seed share first weights and samples: they differ in mix and in labels alone.

ROWS = {  # name: (share of D_m, None for --mix; what photos of D_s are labelled with; by whom)
    "teacher": (1.0, None, None), "guided teacher": (1.0, None, None),
    "segmentation only": (0.0, "S", None), "naive mix": (None, "S", None),
    "pseudo-labels": (None, "M′", "teacher"), "MLB": (None, "B", "teacher"),
    "MLB guided": (None, "B", "guided teacher"), "upper bound": (None, "true matte", None)}
MAKES_A_RUN = ("data", "mattes", "masks", "size", "width", "batch", "teacher_steps", "steps", "lr",
               "mix", "amp", "compile")  # options that must stay the same on --resume
SAVE_SECONDS = 10  # between two checkpoints
HALF = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # of torchrun

def open_data(o):
    """The data set of --data: lists of paths, by use. Raises UserError for what is missing."""
    root = pathlib.Path(o.data)
    masks = pairs(root / "segmentation/image", root / "segmentation/mask")[:o.masks or None]
    data = {"mattes": pairs(root / "matte/foreground", root / "matte/alpha")[:o.mattes or None],
            "backgrounds": [], "masks": masks, "true mattes": []}
    if (root / "matte/background").is_dir():
        data["backgrounds"] = list(pictures(root / "matte/background").values())
    if (root / "segmentation/alpha").is_dir():
        found = pictures(root / "segmentation/alpha")
        data["true mattes"] = [(p, found[p.stem]) for p, _ in masks if p.stem in found]
    data["tests"] = pairs(root / "test/image", root / "test/alpha")
    for pair in data["tests"]:  # a damaged one would spoil the end of a long run
        read_pair(*pair, short=o.size)
    return data

def train_step(net, batch, label, teacher, optimizer, lr, scaler, half):
    """Forward, backward, update on a batch of the mixer -> its loss terms. label: that of photos,
    see ROWS (S and true mattes come from the mixer's files); half: autocast's type or None."""
    device = next(net.parameters()).device
    image = batch["image"].to(device, memory_format=torch.channels_last, non_blocking=True) / 255
    target, mask = (batch[key].to(device, non_blocking=True) / 255 for key in ("target", "mask"))
    natural = batch["natural"].to(device, non_blocking=True).view(-1, 1, 1, 1)
    with torch.autocast(device.type, half, enabled=half is not None):
        if teacher:
            M_t, alpha_t = (logits.float().sigmoid() for logits in teacher(image, mask))
            photo_label = M_t if label == "M′" else blend(M_t, alpha_t, S=mask)
            target = torch.where(natural, photo_label, target)
        matte_logits, boundary_logits = net(image, mask)
    terms = mlb_loss(matte_logits, boundary_logits, target, boundary_label(target))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    scaler.scale(terms["total"]).backward()
    scaler.unscale_(optimizer)  # the clipping below is meant for the true gradients
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)  # left out where fp16 overflowed; update then lowers the scale
    scaler.update()
    values = torch.stack([term.detach() for term in terms.values()])
    if RANKS > 1:
        distributed.all_reduce(values)
    return dict(zip(terms, (values / RANKS).tolist()))  # the one wait for the device in a step

def begin(name, seed, o, path):
    """A row's network, optimizer, scaler and log: new, or as its file at path has them."""
    torch.manual_seed(seed)
    net = MattingNet(o.width, guided=name == "guided teacher")
    net = net.to(o.device, memory_format=torch.channels_last)  # as tensor cores and oneDNN read it
    if RANKS > 1 and o.device != "cpu":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # one mean over all ranks' pictures
    optimizer = torch.optim.AdamW(net.parameters(), o.lr, weight_decay=0.2, fused=True)
    # fp16 holds nothing below 6e-8: the scaler multiplies the loss so that gradients survive it
    scaler = torch.amp.GradScaler(o.device.split(":")[0], enabled=o.amp == "fp16")
    parts, log = {"net": net, "optimizer": optimizer, "scaler": scaler}, []
    if path.exists():
        state, _ = load(path)
        log = state["log"]  # an entry a step: its length is the step
        for key, part in parts.items():
            part.load_state_dict(state[key])
    return parts, log

def fit(name, seed, o, data, path, teacher=None):
    """Trains a row, or goes on with its file at path, to its last step, when it is frozen. Yields
    its network before the first step and after each, so that rows can go on side by side."""
    parts, log = begin(name, seed, o, path)
    (mix, label, _), net, is_teacher = ROWS[name], parts["net"], "teacher" in name
    steps = o.teacher_steps if is_teacher else o.steps
    # teachers draw from another stream: a student must not see its teacher's very composites
    mixer = Mixer(data["mattes"], data["backgrounds"],
                  data["true mattes" if label == "true matte" else "masks"],
                  o.mix if mix is None else mix, o.size, 2 * seed + is_teacher, net.guided)
    if RANK == 0 and not log:  # its first samples, before any blending
        keys = ["image", "target", "mask"]
        sheet(keys, [[to_picture(torch.from_numpy(sample[key]) / 255) for key in keys]
                     for sample in map(mixer.__getitem__, range(8))], path.with_name("batch.png"))
    shares = (range(k * o.batch + RANK, (k + 1) * o.batch, RANKS) for k in range(len(log), steps))
    loader = iter(torch.utils.data.DataLoader(  # its workers start here, not in a thread
        mixer, batch_sampler=shares, num_workers=o.workers, pin_memory=o.device != "cpu"))
    model = nn.parallel.DistributedDataParallel(net) if RANKS > 1 else net
    model = torch.compile(model) if o.compile else model
    yield net
    saved = clock = time.monotonic()
    for step, batch in enumerate(loader, len(log) + 1):
        # the lower of a ramp of 20 steps and half a cosine
        lr = o.lr * min(step / 20, (1 + math.cos(math.pi * (step - 1) / steps)) / 2)
        terms = train_step(model, batch, label, teacher, parts["optimizer"], lr, parts["scaler"],
                           HALF[o.amp])
        need(math.isfinite(terms["total"]), f"{name}, seed {seed}, step {step}: the loss is not "
             f"finite, {terms}; train again with a lower --lr or --amp off, in another --out")
        log.append({**terms, "lr": lr, "seconds": time.monotonic() - clock})
        clock = time.monotonic()
        if RANK == 0 and (step == steps or clock - saved > SAVE_SECONDS):
            save(parts, log, o, path)
            left = round((steps - step) * np.mean([entry["seconds"] for entry in log[-50:]]))
            print(f"{name:17} seed {seed}  step {step:>5}/{steps}  loss {terms['total']:.4f}  "
                  f"{left // 60}:{left % 60:02} left", flush=True)
            saved = clock
        yield net
    net.eval().requires_grad_(False)

def save(parts, log, o, path):
    """Writes a row's file beside its place, then renames it, never half a file; its log as CSV."""
    state = {key: part.state_dict() for key, part in parts.items()}
    options = {name: getattr(o, name) for name in MAKES_A_RUN}
    state |= {"log": log, "guided": parts["net"].guided, "options": options}
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
    lines = [log[0], *(entry.values() for entry in log)]
    path.with_suffix(".csv").write_text("".join(f"{','.join(map(str, x))}\n" for x in lines))

def load(path, device="cpu"):
    """A row's file -> (its dict, its network, frozen). A pickle from a stranger may run any code,
    hence weights_only; a small file may claim to be wide, hence a network without memory first."""
    need(os.path.isfile(path), f"'{path}': no such file; give a row's, as runs/mlb/MLB.0.pt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            net = MattingNet(state["options"]["width"], state["guided"])
        net.load_state_dict(dict(state["net"]), assign=True)  # a copy: assign leaves its mark
        need(state["log"] and 32 <= state["options"]["size"] < 10 ** 5
             and all(x.isfinite().all() for x in state["net"].values()), "its size or a weight")
    except Exception as problem:  # a damaged or hostile file makes torch raise what it likes
        raise UserError(f"{path}: not a whole file of this mlb.py ({str(problem)[:80]}); delete it "
                        "or take another --out or --weights")
    net = net.float().to(device, memory_format=torch.channels_last)
    return state, net.eval().requires_grad_(False)

def train(o):
    """Trains a command's rows, seed by seed; the first rank of torchrun tells how good they are."""
    data, out, scores, begun = open_data(o), pathlib.Path(o.out), {}, time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(out.glob("*.pt")):  # nothing old may pass for new
        need(o.resume, f"{out}: holds a run; go on with it by --resume or take another --out")
        for name, value in load(path)[0]["options"].items():
            need(vars(o).get(name) == value, f"{path}: made with --{name.replace('_', '-')} {value}"
                                             "; give this again or take another --out")
    names = [name for name in ROWS if data["true mattes"] or name != "upper bound"]
    if o.command == "train":
        names = ["guided teacher", "MLB guided"] if o.guide else ["teacher", "MLB"]
    if RANK == 0:
        print(o.device, *(f"{len(paths)} {kind}" for kind, paths in data.items()), sep=", ")
    at_once, go_on = 1, map
    if o.command == "compare" and o.device == "cpu" and RANKS == 1:  # a row on each core is faster
        at_once = min(4, torch.get_num_threads())  # a teacher is 4 rows ahead of its students
        go_on = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)).map
    for seed in [o.seed] if o.command == "train" else range(o.seeds):
        nets = {}
        for abreast in (names[k:k + at_once] for k in range(0, len(names), at_once)):
            rows = [fit(name, seed, o, data, out / f"{name}.{seed}.pt", nets.get(ROWS[name][2]))
                    for name in abreast]
            nets |= zip(abreast, map(next, rows))  # in turn: torch's random numbers are shared
            while any([*go_on(lambda row: [next(row, None) for _ in range(20)][-1], rows)]):
                pass  # 20 steps of each, then the next 20
        if RANK == 0:
            for name, score in evaluate_rows(nets, o.size, data, out).items():
                scores.setdefault(name, []).append(score)
            (out / "metrics.json").write_text(json.dumps(scores, indent=1).replace("NaN", "null"))
            (out / "table.md").write_text(table(scores) + "\n", "utf-8")
    if RANK == 0:
        print(table(scores))
        print(f"{(time.monotonic() - begun) / 60:.1f} minutes; look at the pictures in {out}")

# == 5  Evaluation: the field's metrics, the boundary's MAD, tables and pictures =================
# Matting's claims live in a few percent of the pixels, which MSE hardly sees: hence a MAD of these.
UNITS = {"SAD": 1, "MSE": 1000, "MAD": 1000, "Grad": 1, "Boundary MAD": 1000}  # of tables

def gradient(x):
    """|∇x| of an H×W array, H×W, by the first derivatives of a Gaussian with σ = 1.4 pixels: edges
    should be as steep as the truth's, not only near it (Rhemann et al., CVPR 2009)."""
    t = torch.arange(-6.0, 7, dtype=torch.double)
    smooth = torch.softmax(-0.5 * (t / 1.4) ** 2, 0)  # a Gaussian, its sum 1
    slope = t / 1.4 ** 2 * smooth
    x = torch.from_numpy(np.pad(x, 6, mode="symmetric"))[None, None]  # mirrored; 6 are 4 σ
    down, across = (F.conv2d(F.conv2d(x, a.view(1, 1, 13, 1)), b.view(1, 1, 1, 13))
                    for a, b in ((slope, smooth), (smooth, slope)))
    return torch.hypot(down, across)[0, 0].numpy()

def metrics(prediction, truth):
    """SAD, MSE, MAD and Grad of two H×W arrays in [0, 1], as P3M (Li et al. 2021) reports them:
    whole image, SAD in thousands, Grad in tens, MSE and MAD per pixel; and the MAD of the boundary,
    the pixels within 2 of 0.05 < truth < 0.95 (nan where there are none)."""
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"metrics: two H×W arrays, not {prediction.shape} and {truth.shape}")
    error = np.abs(prediction - truth)
    # not boundary_label: who tries other thresholds there must not move the yardstick
    near = torch.from_numpy((truth > 0.05) & (truth < 0.95)).float()
    near = F.max_pool2d(near[None], 5, 1, 2)[0].bool().numpy()
    return {"SAD": error.sum() / 1000, "MSE": (error ** 2).mean(), "MAD": error.mean(),
            "Grad": ((gradient(prediction) - gradient(truth)) ** 2).sum() / 10,
            "Boundary MAD": error[near].mean() if near.any() else math.nan}

def to_picture(x):
    """A tensor 3×H×W, 1×H×W or H×W in [0, 1] as an RGB or L picture."""
    array = (x.clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(np.moveaxis(array, -3, -1).squeeze() if array.ndim == 3 else array)

def to_tensor(picture):
    """An RGB or L picture as a tensor 3×H×W or 1×H×W in [0, 1]."""
    array = np.array(picture, np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)

def predict(net, photo, size, mask=None):
    """Matte and boundary of an RGB picture, 2×H×W in [0, 1] at its own size, by a net trained at
    size pixels; a guided one needs its mask, an L picture. Sides are rounded to multiples of 32."""
    scale = 2 / (1 + SMALLEST_WINDOW) * size / min(photo.size)  # training showed 0.85 of it
    sides = [max(32, 32 * round(scale * side / 32)) for side in photo.size]
    seen = [to_tensor(x.resize(sides, Image.BILINEAR)) for x in (photo, mask) if x]
    x = torch.cat(seen)[None].to(next(net.parameters()).device, memory_format=torch.channels_last)
    # benchmark off: photos differ in size, and cuDNN would try all its kernels on each new one
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
        maps = torch.cat(net(x[:, :3], x[:, 3:]), 1).float().sigmoid()
        return F.interpolate(maps, photo.size[::-1], mode="bilinear", antialias=True)[0].cpu()

def evaluate(items, mattes_of, path_of_sheet=None, last="truth"):
    """{name: mean metrics} of the mattes {name: H×W} that mattes_of(photo, its path) makes of
    items, (photo's path, truth's path). On a sheet: the three with most hair; last: a title."""
    scores, shown = {}, []
    for path, label in items:
        truth = read(label, True)
        photo, M = read(path).resize(truth.size), to_tensor(truth)[0]
        mattes = mattes_of(photo, path)
        for name, matte in mattes.items():
            scores.setdefault(name, []).append(metrics(matte, M))
        shown.append((boundary_label(M).mean(), [photo, *map(to_picture, mattes.values()), truth]))
        shown = sorted(shown, key=lambda entry: entry[0], reverse=True)[:3]
    if path_of_sheet:
        rows = [row for _, cells in shown for row in close_ups(cells)]
        sheet(["photo", *scores, last], rows, path_of_sheet)
    return {name: {metric: torch.DoubleTensor([score[metric] for score in found]).nanmean().item()
                   for metric in UNITS} for name, found in scores.items()}

def evaluate_rows(nets, size, data, out):
    """{row: mean metrics} of networks on the test pictures, and of the labels of D_s whose truth is
    known; draws mattes.png, labels.png. Test pictures have no masks: no row for guided teachers."""
    seeing, masks = {name: net for name, net in nets.items() if not net.guided}, dict(data["masks"])
    def labels_of(photo, path):
        """S of a photo of D_s, and what the teachers make of it."""
        mask = read(masks[path], True).resize(photo.size)
        labels = {"S": to_tensor(mask)[0]}
        for name, suffix in (("teacher", ""), ("guided teacher", " guided")):
            if name in nets:
                M_t, alpha_t = predict(nets[name], photo, size, mask if suffix else None)
                B = blend(M_t, alpha_t, labels["S"])
                labels |= {f"M′{suffix}": M_t, f"α′{suffix}": alpha_t, f"B{suffix}": B}
        return labels
    scores = evaluate(data["tests"], lambda photo, _: {
        name: predict(net, photo, size)[0] for name, net in seeing.items()}, out / "mattes.png")
    known = data["true mattes"][:200]  # of thousands it would take hours
    labels = evaluate(known or data["masks"][:3], labels_of, out / "labels.png",
                      "truth" if known else "S")
    return scores | {f"labels {kind}": labels[kind] for kind in ("S", "M′", "B", "B guided")
                     if known and kind in labels}

def table(scores):
    """{row: [metrics, one per seed]} as a Markdown table: mean ± standard deviation (n − 1)."""
    lines = [["", *(f"{name} e-3" if unit > 1 else name for name, unit in UNITS.items())],
             ["-" * 17, *["-" * 15 + ":"] * len(UNITS)]]
    for row, seeds in scores.items():
        lines.append([row])
        for name, unit in UNITS.items():
            values = [unit * score[name] for score in seeds]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            lines[-1].append(f"{np.mean(values):.2f}{spread}")
    return "\n".join(f"| {row:17} | {' | '.join(f'{cell:>16}' for cell in cells)} |"
                     for row, *cells in lines)

def close_ups(cells):
    """Three rows of a sheet: a photo, its mattes and, last, the truth, whole; the 56×56 pixels with
    most boundary in the last two, four times as large; the photo again, and |matte − truth|."""
    side = min(56, *cells[-1].size)
    share = F.avg_pool2d(sum(boundary_label(to_tensor(x)) for x in cells[-2:]), side, 1)[0]
    top, left = divmod(share.argmax().item(), share.shape[1])
    box = left, top, left + side, top + side
    crops = [x.crop(box).resize((224, 224), Image.NEAREST) for x in cells]
    errors = [ImageChops.difference(x, crops[-1]) for x in crops[1:-1]]
    return [[ImageOps.contain(x, (112, 112)) for x in cells], crops, [crops[0], *errors]]

def sheet(titles, rows, path):
    """Saves rows of pictures under titles, 224 pixels wide: seven fill a projector's 1,600."""
    page, y = Image.new("RGB", (len(titles) * 228 + 4, 10 ** 4), "white"), 34
    for k, title in enumerate(titles):
        title = title.replace("′", "'").replace("α'", "boundary")  # what the font has
        ImageDraw.Draw(page).text((228 * k + 116, 18), title, "black", anchor="mm", font_size=20)
    for row in rows:
        for k, picture in enumerate(row):
            picture.thumbnail((224, 224))
            page.paste(picture, (228 * k + 4, y))
        y += max(picture.height for picture in row) + 4
    page.crop((0, 0, page.width, y)).save(path)

def trained_net(o):
    """The network of --weights, and the size it sees: that of --size or of its training."""
    state, net = load(o.weights, o.device)
    need(not net.guided, f"{o.weights}: a guided teacher needs masks; give another row's file")
    return net, o.size or state["options"]["size"]

def print_metrics(o):
    """Prints the metrics of trained weights on the test pictures of --data."""
    (net, size), test = trained_net(o), pathlib.Path(o.data, "test")
    scores = evaluate(pairs(test / "image", test / "alpha"),
                      lambda photo, _: {"": predict(net, photo, size)[0]})
    print(table({pathlib.Path(o.weights).stem: [scores[""]]}))

# == 6  Benchmark: frames per second, and what each step towards them buys =======================

def fold(net):
    """A copy with each batch norm folded into the convolution before it, the same function: in eval
    mode batch norm is a scale and a shift per channel, and so are a kernel and its bias."""
    net = copy.deepcopy(net)
    for block in net.children():
        if isinstance(block, nn.Sequential):
            block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    return net

def seconds_of(run, device):
    """Seconds that a call takes. CUDA kernels run on after the launch: the clock waits for them."""
    wait = time.perf_counter if device == "cpu" else torch.cuda.synchronize
    wait()
    begun = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begun

@torch.no_grad()
def bench(o):
    """Times a ladder of networks in turn, so that a slow moment of the machine hits all, then bytes
    to bytes with the fastest. The difference is the matte's largest change against fp32."""
    net = trained_net(o)[0] if o.weights else MattingNet(o.width).eval().to(o.device)
    frame = torch.randint(256, (1, o.size, o.size, 3), dtype=torch.uint8)  # as cameras give it
    x = frame.to(o.device).permute(0, 3, 1, 2) / 255
    rows = {"fp32": (copy.deepcopy(net).to(memory_format=torch.contiguous_format), x.contiguous())}
    net = net.to(memory_format=torch.channels_last)
    rows |= {"+ channels-last": (net, x), "+ batch norm folded": (fold(net), x)}
    if o.device != "cpu":
        rows["+ TF32"] = rows["+ batch norm folded"]
    half = torch.bfloat16 if o.device == "cpu" else torch.float16
    rows["+ 16-bit weights"] = fold(net).to(half), x.to(half)
    if o.compile:  # on CUDA this records a graph: no Python between the kernels
        rows["+ compile"] = torch.compile(fold(net).to(half), mode="reduce-overhead"), x.to(half)
    times, mattes = {row: [] for row in rows}, {}
    for _ in range(40):
        for row, (run, x) in rows.items():
            torch.backends.cudnn.allow_tf32 = list(rows).index(row) > 2  # from its row on
            times[row].append(seconds_of(lambda: run(x), o.device))
            mattes[row] = run(x)[0].float().sigmoid().cpu()
    fastest, like = rows[min(rows, key=lambda row: np.median(times[row]))]
    def end_to_end():
        """What a video call pays for: bytes in, bytes out."""
        logits, _ = fastest(frame.to(o.device).permute(0, 3, 1, 2).to(like.dtype) / 255)
        return (255 * logits.float().sigmoid()).round().byte().cpu()
    mattes["end to end, in bytes"] = end_to_end() / 255
    times["end to end, in bytes"] = [seconds_of(end_to_end, o.device) for _ in range(40)]
    print(f"{o.device}, torch {torch.__version__}, {o.size}x{o.size} pixels, batch 1")
    for row, seconds in times.items():
        ms = 1000 * np.median(seconds[4:])  # warm by then
        difference = (mattes[row] - mattes["fp32"]).abs().max()
        print(f"{row:20} {ms:8.2f} ms {1000 / ms:8.1f} FPS   difference {difference:.4f}")

# == 7  Matting: a person cut out of one's own photo =============================================
# A strand's pixel holds hair and old background: a halo, unless the colour of hair is estimated.

def blur(x, radius):
    """Box blur of C×H×W by radius pixels: over 3 + 1 + 3 cells of a grid with three to a radius. At
    the edges the mean is over what there is: zeros would darken them."""
    grid = [max(1, 3 * side // radius) for side in x.shape[1:]]
    cells = F.avg_pool2d(F.adaptive_avg_pool2d(x, grid)[None], 7, 1, 3, count_include_pad=False)
    return F.interpolate(cells, x.shape[1:], mode="bilinear")[0]

def estimate_foreground(image, alpha):
    """The foreground colour F of image = αF + (1 − α)B; image and F 3×H×W, alpha 1×H×W, in [0, 1].
    Forte (ICIP 2021): F is blurred weighted by α, B by 1 − α, widely, then narrowly."""
    foreground = background = image
    for radius in (90, 6):
        share = blur(alpha, radius)
        around = blur(foreground * alpha, radius) / (share + 1e-5)
        background = blur(background * (1 - alpha), radius) / (1 - share + 1e-5)
        foreground = (around + alpha * (image - composite(around, alpha, background))).clip(0, 1)
    return foreground

def matte(o):
    """Cuts the person out of photos and folders of them: OUT/NAME.png, with alpha and the person's
    colours alone. What fails is named, and the rest go on; no photo is written over."""
    (net, size), out, failed, owners = trained_net(o), pathlib.Path(o.out), 0, {}
    out.mkdir(parents=True, exist_ok=True)
    for path in o.photos:
        try:
            if path.is_dir():
                o.photos += pictures(path).values()  # which this loop will come to
                continue
            need(path.parent.resolve() != out.resolve(), f"{path}: lies in --out; take another")
            need(owners.setdefault(path.stem, path) == path, f"{path}: its name is used; rename it")
            photo = read(path)
            alpha = to_picture(predict(net, photo, size)[0])
            # colours are smooth where alpha is not 1: a coarse grid of them saves gigabytes
            coarse = max(1, min(photo.size) // 512)
            small = (to_tensor(x.reduce(coarse)) for x in (photo, alpha))
            cutout = to_picture(estimate_foreground(*small)).resize(photo.size)
            cutout.paste(photo, mask=alpha.point(lambda value: 255 * (value == 255)))
            cutout.putalpha(alpha)
            cutout.save(out / f"{path.stem}.png", compress_level=1)
            print(out / f"{path.stem}.png", flush=True)
        except Exception as problem:
            complain(problem)
            failed += 1
    need(not failed, f"{failed} failed, see above; the rest is in {out}")

# == 8  Command line =============================================================================

COMMANDS = {"train": (train, "train a teacher and its student"),
            "compare": (train, "does the blending help? train every row of the table, over seeds"),
            "eval": (print_metrics, "the metrics of trained weights on the test pictures"),
            "bench": (bench, "frames per second, and what each step towards them buys"),
            "matte": (matte, "cut the person out of photos, or of folders of them")}
OPTIONS = [  # (option, the commands that have it by their initials, default, help)
    ("data", "tce", str(pathlib.Path(__file__).with_name("data_sample")), "folder of the data set"),
    ("out", "t", "runs/mlb", "folder for all that is written"),
    ("out", "c", "runs/compare", "folder for all that is written"),
    ("out", "m", "cutouts", "folder for the pictures"),
    ("weights", "ebm", "", "a row's file, such as runs/mlb/MLB.0.pt"),
    ("mattes", "tc", 0, "take so many of the mattes of D_m; 0: all"),
    ("masks", "tc", 0, "take so many of the masks of D_s; 0: all"),
    ("size", "tc", 128, "side of a training picture in pixels, a multiple of 32"),
    ("size", "b", 512, "side of a frame in pixels, a multiple of 32"),
    ("size", "em", 0, "side of the pictures it was trained on; 0: as its file says"),
    ("width", "tcb", 32, "channels of the network's first stage"),
    ("batch", "tc", 8, "pictures in a step, over all ranks"),
    ("teacher-steps", "tc", 2200, "steps of a teacher"),
    ("steps", "tc", 2500, "steps of a student"),
    ("lr", "tc", 4e-3, "highest learning rate"),
    ("mix", "tc", 0.25, "share of composites in a student's batches, 0 to 1"),
    ("seed", "t", 0, "of everything random"),
    ("seeds", "c", 3, "how many seeds, from 0"),
    ("guide", "t", False, "our extension: a teacher that sees the mask, and its student"),
    ("amp", "tc", "auto", "precision: off, bf16, fp16 or auto (fp16 on CUDA, else off)"),
    ("workers", "tc", 0, "processes that load data"),
    ("compile", "tcb", False, "torch.compile the network"),
    ("resume", "tc", False, "go on with the run in --out; begin it where there is none"),
    ("device", "tcebm", "auto", "auto, cpu, cuda or one of several GPUs, as cuda:1")]

def parse(argv):
    """The options of a command line, as the tables above have them."""
    one_line = {"prog": "mlb", "usage": argparse.SUPPRESS, "allow_abbrev": False}  # for errors
    parser = argparse.ArgumentParser(description=__doc__, **one_line,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, (_, what) in COMMANDS.items():
        p = commands.add_parser(command, help=what, description=what, **one_line,
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if command == "matte":
            p.add_argument("photos", nargs="+", type=pathlib.Path, help="photos or folders")
        for option, initials, default, text in OPTIONS:
            if command[0] in initials:
                kind = {"action": "store_true"} if default is False else {"type": type(default)}
                p.add_argument(f"--{option}", default=default, help=text, **kind)
    return parser.parse_args(argv)

def check(o):
    """Refuses options that make no sense, and settles what "auto" left to us."""
    for name, value in vars(o).items():
        least = name in ("width", "batch", "teacher_steps", "steps", "seeds")
        need(not isinstance(value, (int, float)) or least <= value <= (1 if name == "mix" else 2e9),
             f"--{name.replace('_', '-')} {value}: makes no sense, see --help")
    need(o.command in ("eval", "matte") or (o.size > 0 and o.size % 32 == 0),
         f"--size {o.size}: the network takes multiples of 32")
    share, rest = divmod(vars(o).get("batch", 0), RANKS)
    need(not rest and share * o.size != 32, f"--batch: no multiple of {RANKS} ranks, or too small")
    need(vars(o).get("amp", "off") in ("auto", *HALF), "--amp: take auto, off, bf16 or fp16")
    need(re.fullmatch(r"auto|cpu|cuda(:\d+)?", o.device), f"--device {o.device}: see --help")
    if o.device in ("auto", "cuda"):  # torchrun gives each rank a GPU
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        o.device = gpu if o.device == "cuda" or torch.cuda.is_available() else "cpu"
    if getattr(o, "amp", "") == "auto":
        o.amp = "off" if o.device == "cpu" else "fp16"
    torch.zeros(1, device=o.device) + 1  # a kernel: not every wheel has those of every GPU

def complain(problem):
    """What the user can put right as one line on standard error; a bug of ours is raised again."""
    text, kind = str(problem).rsplit("UserError: ", 1)[-1], f"{type(problem)}: {problem}"
    if not isinstance(problem, (UserError, OSError)):
        if not re.search("allocate|of memory|MemoryError|CUDA [eGu]|NCCL|NVIDIA|worker .pid|dynamo|"
                         "inductor|StreamWriter|iostream|unexpected pos", kind):  # 3 for full disk
            raise problem
        way = "lower --batch or --size" if "emory" in kind else "see README, When torch complains"
        text = f"{kind.splitlines()[0]}; {way}"
    print("mlb: error: " + text.strip().replace("\n", " "), file=sys.stderr, flush=True)

def main(argv=None):
    """Runs a command -> exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    try:
        o = parse(argv)
        check(o)
        if o.device != "cpu":
            torch.cuda.set_device(o.device)
            torch.backends.cudnn.benchmark = True  # one size: try all kernels, keep the fastest
        if RANKS > 1:
            distributed.init_process_group("gloo" if o.device == "cpu" else "nccl",
                                           timeout=48 * distributed.default_pg_timeout)  # a day
        COMMANDS[o.command][0](o)
        if RANKS > 1:  # after success alone: on any other way out torchrun ends the other ranks
            distributed.barrier()
            distributed.destroy_process_group()
        return 0
    except KeyboardInterrupt:
        print("\nmlb: stopped; train and compare go on by --resume", file=sys.stderr)
        return 130
    except Exception as problem:
        complain(problem)
        return 2

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal without Greek shows α as ?
    sys.exit(main())

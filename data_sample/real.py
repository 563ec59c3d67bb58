# SPDX-License-Identifier: MIT
"""Lay out real photographs with masks in the layout of data_sample, to train on people as they are.

    git clone https://github.com/bio-punk/AutoPortraitMatting    1,605 portraits (EG1800), 0.7 GB
    git clone https://github.com/bearpaw/clothing-co-parsing     1,004 street photos, 0.3 GB
    git clone https://github.com/gmguarino/PennFudan             170 street photos, 0.1 GB
    python data_sample/real.py CLONES OUT     CLONES: the folder that these were cloned into
    python mlb.py compare --data OUT --out runs/real

OUT/segmentation holds their photos, OUT/masks_test every 16th portrait, kept apart to measure IoU.
OUT/matte and OUT/test are copies: of the drawings beside this script, or of your own mattes
(foreground, alpha, perhaps background) and test photos (image, alpha; say PPM-100).

Nothing of these photos is ever committed or shipped with this project: they belong to their owners.
What the clones say. EG1800: LICENSE Apache 2.0, README "for academic exchange only" (in Chinese) of
the data; says nothing of the photos' owners on Flickr. CCP: LICENSE Apache 2.0; says nothing of the
photos' owners. PennFudan: says nothing; the data's readme.txt: all rights retained, no reposts.
"""

import shutil
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from PIL import Image

# A prefix for names in OUT, the repository; in it a folder, its photos, the mask of photo {}
SOURCES = """
eg   bio-punk/AutoPortraitMatting data              images_data_crop/*.jpg images_mask/{}_mask.mat
ccp  bearpaw/clothing-co-parsing  .                 photos/*.jpg      annotations/pixel-level/{}.mat
penn gmguarino/PennFudan          data/PennFudanPed PNGImages/*.png        PedMasks/{}_mask.png
"""


def stop(text):
    """Say in one line what the user can put right, and exit with status 2."""
    ArgumentParser().exit(2, f"real.py: {text}\n")


def find(clones):
    """What is there: {(prefix, repository): [(photo, mask), ...]}, empty where no clone is."""
    found = {}
    for line in SOURCES.strip().split("\n"):
        prefix, repository, folder, photos, mask = line.split()
        folder = clones / repository.split("/")[1] / folder
        pairs = [(path, folder / mask.format(path.stem)) for path in sorted(folder.glob(photos))]
        found[prefix, repository] = [pair for pair in pairs if pair[1].is_file()]
    return found


def read_mask(path):
    """A mask file as bool (H, W): clothes or pedestrians are numbered, 0 is nobody."""
    if path.suffix != ".mat":
        return np.asarray(Image.open(path)) > 0
    try:
        from scipy.io import loadmat  # here, since nothing else in this project needs scipy
    except ImportError:
        stop("reading .mat masks needs scipy: pip install scipy")
    variables = loadmat(path)
    return variables["mask" if "mask" in variables else "groundtruth"] > 0


def lay_out(prefix, pairs, out, short):
    """Write one repository's (photo, mask) pairs, shrunk; returns how many were left out."""
    left_out = 0
    for index, (path, mask_path) in enumerate(pairs):
        photo = Image.open(path).convert("RGB")  # as stored, not turned upright: so is its mask
        mask = read_mask(mask_path)
        if mask.shape != photo.size[::-1] or not 0.02 <= mask.mean() <= 0.97:
            left_out += 1  # they do not belong together, or show nobody, or nothing else
            continue
        size = [round(side * min(1, short / min(photo.size))) for side in photo.size]
        photo = photo.resize(size, Image.LANCZOS)
        mask = Image.fromarray(np.uint8(255 * mask)).resize(size, Image.BOX)
        mask = mask.point(lambda value: 255 * (value > 127))  # a pixel is what most of it was
        split = "masks_test" if prefix == "eg" and index % 16 == 0 else "segmentation"
        photo.save(out / split / f"image/{prefix}_{path.stem}.jpg", quality=95)
        mask.save(out / split / f"mask/{prefix}_{path.stem}.png")
    return left_out


def main():
    """Check everything first, then write photos, copy mattes and test pictures, and count."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add, drawn = parser.add_argument, Path(__file__).resolve().parent
    add("clones", type=Path, metavar="CLONES", help="folder that holds one or more of the clones")
    add("out", type=Path, metavar="OUT", help="new folder, for --data of mlb.py")
    add("--mattes", metavar="FOLDER", type=Path, default=drawn / "matte", help="to be OUT/matte")
    add("--test", metavar="FOLDER", type=Path, default=drawn / "test", help="to be OUT/test")
    add("--short", type=int, default=208, help="short side of D_s in pixels (default: 208)")
    args = parser.parse_args()
    mattes, test = args.mattes, args.test
    if args.out.exists() and any(args.out.iterdir()):
        stop(f"{args.out}: not empty, and nothing is overwritten; name a new folder")
    for needed in (mattes / "foreground", mattes / "alpha", test / "image", test / "alpha"):
        if not needed.is_dir():
            stop(f"{needed}: no such folder; see --help")
    found = find(args.clones)
    if not any(found.values()):
        stop(f"{args.clones}: holds none of the clones; see --help")
    for pairs in filter(None, found.values()):
        read_mask(pairs[0][1])  # without scipy it ends here, with nothing written
    for split in ("segmentation", "masks_test"):
        (args.out / split / "image").mkdir(parents=True)
        (args.out / split / "mask").mkdir()
    (args.out / ".gitignore").write_text("*\n")  # nobody shall commit OUT by mistake
    for (prefix, repository), pairs in found.items():
        left_out = lay_out(prefix, pairs, args.out, args.short)
        counted = f"{len(pairs)} photos with masks, {left_out} left out"
        print(f"{repository}: {counted if pairs else 'no clone, left out'}", flush=True)
    shutil.copytree(mattes, args.out / "matte")
    shutil.copytree(test, args.out / "test")
    for folder in sorted(args.out.glob("*/*/")):
        print(f"{sum(path.is_file() for path in folder.rglob('*')):6} {folder}")
    if test == drawn / "test":
        print("note: test holds drawings; for figures that count, give photos with mattes: --test")


if __name__ == "__main__":
    main()

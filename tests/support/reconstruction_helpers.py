"""The files that a reconstruction writes, and images to reconstruct."""

from PIL import Image

FILES = ("metrics.json", "slices.csv", "reconstruction.png", "examples.npz", "pictures/")
WRITTEN = set(FILES[:4])


def write_pngs(archive, splits, folder, sub_folder):
    """Write the slices of some splits; `sub_folder` may hold {split}."""
    folder.mkdir()
    for split in splits:
        for row in archive.indices(split):
            name = f"{archive.index[row].slice_id}.png"
            path = folder / sub_folder.format(split=split) / name
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(archive.images[row]).save(path)
    return folder


def load_split(archive, split="test"):
    """Load the images of a split, float32 of shape (slices, rows, cols, 1)."""
    return archive.load(archive.indices(split))

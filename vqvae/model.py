"""The VQ-VAE: image -> latents -> codes -> image, with its preprocessing inside."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from brainslices.data.archive import FOREGROUND_THRESHOLD
from brainslices.data.code_grids import check_codes
from brainslices.data.crop import CropBox
from brainslices.data.images import check_intensities
from brainslices.distributed.collectives import replica_count
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import bits_per_pixel_raw
from brainslices.evaluation.ssim import SMALLEST_SIDE, ssim_scores
from brainslices.runs.loading import load_model
from brainslices.schema import INTEGER, NATURAL, NUMBER, SHAPE, Rule, check_arguments
from brainslices.types import PathLike, Tensor
from vqvae.codebook_metrics import CodebookPerplexity, CodebookUsage
from vqvae.config import VQVAEConfig
from vqvae.inpainting import Inpainting
from vqvae.networks import build_decoder, build_encoder
from vqvae.quantizer import VectorQuantizer, VectorQuantizerEMA

__all__ = ["VQVAE"]

ARGUMENTS = {
    "image_shape": SHAPE,
    "crop": Rule(
        lambda crop: (
            len(crop) == 4 and all(map(INTEGER.is_valid, crop)) and SHAPE.is_valid(tuple(crop[2:]))
        ),
        "four integers, top, left, rows and cols, with positive sides",
    ),
    "mean": Rule(lambda mean: NUMBER.is_valid(mean) and 0 <= mean <= 1, "in [0, 1]"),
    "std": Rule(lambda std: NUMBER.is_valid(std) and 0 < std <= 1, "positive, at most 1"),
    "seed": NATURAL,
}


@keras.saving.register_keras_serializable(package="vqvae")
class VQVAE(keras.Model):
    """Vector-quantised variational autoencoder of brain slices.

    Takes and returns images of the source's size and intensities. Inside, it crops them, extracts
    the residual (image - mean) / std of the training slices and resamples it to the coded size;
    decoding inverts all of it.

    `encode`, `encode_to_codes`, `decode` and `decode_codes` take arrays or tensors, of one batch,
    and return tensors; they also work inside a Keras graph. `reconstruct` takes and returns an
    array of any number of images. Images are floats in [0, 1]; returned ones are float32, clipped.

    Args:
        image_shape: (rows, cols) of the source's images.
        crop: (top, left, rows, cols) of the coded part. It may extend beyond the image.
        mean: float, mean intensity of the training crops, in [0, 1].
        std: float, their standard deviation, positive.
        seed: int, for the initial codebook and the restarts of dead codes.
        dtype: dtype policy of the networks; by default the global one. The quantiser, losses and
            scores are always float32.
        name: str, the Keras name.
        **config: the fields of `VQVAEConfig`.

    Call arguments:
        inputs: float tensor of shape (batch, rows, cols, 1), intensities in [0, 1].
        training: bool.

    Attributes:
        code_grid_shape: (r, c), rows and cols of the code grid.

    Returns:
        `{"reconstruction", "codes"}`: float32 of the shape of `inputs`, and int32 of shape
        (batch, r, c). The reconstruction is not clipped to [0, 1], because the losses need the
        gradient outside; `reconstruct`, `decode` and `decode_codes` clip.

    Raises:
        InputError: if an argument is out of its range, or the crop is smaller than the window of
            SSIM.

    Example:
        A trained model comes from `VQVAE.from_run("runs/default")`; this one is untrained:

        >>> from vqvae.config import PRESETS
        >>> config = dataclasses.asdict(PRESETS["seed"].model)
        >>> model = VQVAE((40, 32), (4, 0, 32, 32), mean=0.2, std=0.3, **config)
        >>> model.build((None, 40, 32, 1))
        >>> images = np.zeros((5, 40, 32, 1), "float32")
        >>> codes = model.encode_to_codes(images)
        >>> tuple(codes.shape), tuple(model.decode_codes(codes).shape)
        ((5, 8, 8), (5, 40, 32, 1))
        >>> np.array_equal(model.reconstruct(images), model.decode_codes(codes))
        True

    Reference:
        van den Oord, Vinyals, Kavukcuoglu 2017, arXiv 1711.00937.
    """

    config_type = VQVAEConfig

    def __init__(
        self,
        image_shape: tuple[int, int],
        crop: tuple[int, int, int, int],
        mean: float,
        std: float,
        seed: int = 0,
        dtype: str | None = None,
        name: str = "vqvae",
        **config: Any,
    ):
        arguments = {"image_shape": image_shape, "crop": crop, "mean": mean, "std": std}
        check_arguments(ARGUMENTS, **arguments, seed=seed)
        super().__init__(name=name, dtype=dtype)
        self.config = VQVAEConfig(**config)
        rows, cols = image_shape  # a saved model has lists
        self.image_shape, self.crop = (rows, cols), tuple(crop)
        self.mean, self.std, self.seed = mean, std, seed
        if min(self.crop[2:]) < SMALLEST_SIDE:
            raise InputError(
                f"`crop` must have sides of at least {SMALLEST_SIDE} pixels, the window of SSIM. "
                f"Received: crop={self.crop} (top, left, rows, cols)."
            )
        step, scale = self.config.downsampling, self.config.magnification
        r, c = (max(1, round(side * scale / step)) for side in self.crop[2:])
        self.code_grid_shape, self.coded_shape = (r, c), (r * step, c * step)
        self._add_networks(self.config)
        self._add_metrics()

    def _add_networks(self, config):
        shared = {
            "channels": config.channels,
            "kernel_size": config.kernel_size,
            "embedding_dim": config.embedding_dim,
            "dtype": self.dtype_policy,
        }
        self.encoder = build_encoder((*self.coded_shape, 1), blocks=config.encoder_blocks, **shared)
        self.quantizer = _build_quantizer(config, self.seed)
        self.decoder = build_decoder(self.code_grid_shape, blocks=config.decoder_blocks, **shared)

    def _add_metrics(self):
        def mean(name):
            return keras.metrics.Mean(name=name, dtype="float32")

        self.loss_metrics = {name: mean(name) for name in ("reconstruction_loss", "quantizer_loss")}
        count = self.config.num_embeddings
        self.codebook_metrics = [
            CodebookPerplexity(count, name="perplexity"),
            CodebookUsage(count, name="codebook_usage"),
        ]
        # Updated in evaluation only: SSIM at the source size would slow every training step.
        self.score_metrics = {name: mean(name) for name in ("ssim", "ssim_foreground")}
        self._is_evaluating = False

    def build(self, input_shape):
        self.quantizer.build((None, *self.code_grid_shape, self.config.embedding_dim))

    def call(self, inputs, training=False):
        quantized, codes = self.quantizer(self._encode(inputs, training), training=training)
        return {"reconstruction": self._decode(quantized, training), "codes": codes}

    def _encode(self, images, training=False):
        residual = (self.cut(ops.cast(images, "float32")) - self.mean) / self.std
        return self.encoder(_resample(residual, self.coded_shape), training=training)

    def _decode(self, quantized, training=False):
        residual = ops.cast(self.decoder(quantized, training=training), "float32")
        return self.paste(_resample(residual, self.crop[2:]) * self.std + self.mean)

    def cut(self, images: Tensor) -> Tensor:
        """Cut out the coded part: (batch, rows, cols, 1) -> (batch, *crop sides, 1)."""
        in_image, in_crop = CropBox(*self.crop).windows(self.image_shape)
        return ops.pad(images[in_image], _margins(in_crop, self.crop[2:]))

    def paste(self, crops: Tensor) -> Tensor:
        """Invert `cut`, with zeros around the coded part."""
        in_image, in_crop = CropBox(*self.crop).windows(self.image_shape)
        return ops.pad(crops[in_crop], _margins(in_image, self.image_shape))

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (batch, rows, cols, 1) to latents (batch, r, c, embedding_dim).

        Raises:
            InputError: if `images` has another shape or holds integers.
        """
        self._check_images(images)
        return self._encode(images)

    def encode_to_codes(self, images: Tensor) -> Tensor:
        """Encode images (batch, rows, cols, 1) to int32 codes (batch, r, c).

        Raises:
            InputError: as `encode`.
        """
        return self.quantizer.to_codes(self.encode(images))

    def decode(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents (batch, r, c, embedding_dim) to images (batch, rows, cols, 1).

        Raises:
            InputError: if `quantized` has another shape.
        """
        _check_shape("quantized", quantized, (*self.code_grid_shape, self.config.embedding_dim))
        return ops.clip(self._decode(quantized), 0.0, 1.0)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode integer codes (batch, r, c) to images (batch, rows, cols, 1).

        Raises:
            InputError: if `codes` has another shape, or an array holds anything but codes.
        """
        _check_shape("codes", codes, self.code_grid_shape)
        check_codes(codes, self.config.num_embeddings)
        return self.decode(self.quantizer.lookup(codes))

    def decode_expected(self, probabilities: Tensor) -> Tensor:
        """Decode the mean code vectors under probabilities of codes.

        Args:
            probabilities: float tensor of shape (batch, r, c, num_embeddings).

        Returns:
            float32 images (batch, rows, cols, 1), in [0, 1].
        """
        return self.decode(ops.matmul(probabilities, self.quantizer.codebook))

    def reconstruct(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Encode images to codes and decode these, a batch at a time on the device.

        Args:
            images: float array of shape (n, rows, cols, 1), in [0, 1], as from
                `SliceArchive.load`; n may be 0.
            batch_size: images encoded and decoded at a time.

        Returns:
            float32 array of shape (n, rows, cols, 1), in [0, 1].

        Raises:
            InputError: as `encode`, or if the batch size is under 1.
        """
        self._check_images(images)
        if batch_size < 1:
            raise InputError(f"`batch_size` must be at least 1. Received: batch_size={batch_size}.")
        reconstructions = np.empty(images.shape, "float32")
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            decoded = self.decode_codes(self.encode_to_codes(images[batch]))
            reconstructions[batch] = ops.convert_to_numpy(decoded)
        return reconstructions

    def inpainting(
        self, image: np.ndarray, hidden: tuple[int, int, int, int] | np.ndarray | None = None
    ) -> Inpainting:
        """Return the `Inpainting` of an image: its observed codes, and how to fill in the rest.

        Args:
            image: float array in [0, 1] or uint8 array, of shape (rows, cols) or (rows, cols, 1).
            hidden: as for `Inpainting`.

        Raises:
            InputError: as `Inpainting`.
        """
        return Inpainting(self, image, hidden)

    def _check_images(self, images):
        _check_shape("images", images, (*self.image_shape, 1))
        dtype = keras.backend.standardize_dtype(images.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise InputError(
                "`images` must be floats in [0, 1]; divide 8-bit images by 255. "
                f"Received: images.dtype={dtype}."
            )
        # Arrays of a user; a tensor of a compiled step has no values yet.
        if isinstance(images, np.ndarray):
            check_intensities("images", images)

    @classmethod
    def from_run(cls, run: PathLike, dtype: str | None = None) -> "VQVAE":
        """Load the trained model of a run, its best epoch.

        Args:
            run: the run folder of `train_vqvae.py`: a path or a `Run`.
            dtype: dtype policy to load it in; by default the one it was trained in.

        Raises:
            InputError: if the run is of another kind or format, or its model is missing or corrupt.
        """
        return load_model(run, "vqvae", dtype)

    @property
    def bits_per_pixel_raw(self) -> float:
        """Bits of a code grid without entropy coding, per pixel of the source image."""
        return bits_per_pixel_raw(
            self.code_grid_shape, self.config.num_embeddings, self.image_shape
        )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        originals, reconstructions = ops.cast(x, "float32"), y_pred["reconstruction"]
        reconstruction_loss = self._reconstruction_loss(
            self.cut(originals), self.cut(reconstructions)
        )
        for metric in self.codebook_metrics:
            metric.update_state(y_pred["codes"])
        # The quantiser's, added last; before it may be those of replicas that ran earlier.
        quantizer_loss = self.losses[-1]
        values = {"reconstruction_loss": reconstruction_loss, "quantizer_loss": quantizer_loss}
        for name, value in values.items():
            self.loss_metrics[name].update_state(value, sample_weight=ops.shape(x)[0])
        if not training:
            self._score(originals, ops.clip(reconstructions, 0.0, 1.0))
        return (reconstruction_loss + quantizer_loss) / replica_count()

    def _score(self, originals, reconstructions):
        similarity, foreground_similarity = ssim_scores(originals, reconstructions)
        self.score_metrics["ssim"].update_state(similarity)
        # As in the reported score, slices without foreground are left out of the mean.
        self.score_metrics["ssim_foreground"].update_state(
            foreground_similarity,
            sample_weight=ops.any(originals > FOREGROUND_THRESHOLD, axis=(1, 2, 3)),
        )

    def _reconstruction_loss(self, originals, reconstructions):
        config, loss = self.config, 0.0
        error = (originals - reconstructions) / self.std
        if config.l1_weight:
            loss += config.l1_weight * ops.mean(ops.abs(error))
        if config.mse_weight:
            loss += config.mse_weight * ops.mean(ops.square(error))
        if config.ssim_weight:
            clipped = ops.clip(reconstructions, 0.0, 1.0)
            similarity, foreground_similarity = map(ops.mean, ssim_scores(originals, clipped))
            similarity += config.foreground_share * (foreground_similarity - similarity)
            loss += config.ssim_weight * (1.0 - similarity)
        return loss

    def evaluate(self, *args, **kwargs):
        self._is_evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._is_evaluating = False

    def get_metrics_result(self):
        """Return the values of the metrics; the SSIM scores only within `evaluate`."""
        results = super().get_metrics_result()
        hidden = () if self._is_evaluating else self.score_metrics
        return {name: value for name, value in results.items() if name not in hidden}

    def get_config(self):
        return {
            "image_shape": self.image_shape,
            "crop": self.crop,
            "mean": self.mean,
            "std": self.std,
            "seed": self.seed,
            "dtype": self.dtype_policy.name,
            "name": self.name,
            **dataclasses.asdict(self.config),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "VQVAE":
        return cls(**config)


def _check_shape(name, array, item_shape):
    if tuple(array.shape[1:]) != item_shape:
        expected = ", ".join(map(str, item_shape))
        raise InputError(
            f"`{name}` must have the shape (batch, {expected}) that the model was trained on. "
            f"Received: {name}.shape={tuple(array.shape)}."
        )


def _margins(window, shape):
    """Return what `ops.pad` must add around a window to fill an image of (rows, cols)."""
    sides = [(span.start, size - span.stop) for span, size in zip(window[1:], shape, strict=True)]
    return [(0, 0), *sides, (0, 0)]


def _resample(images, shape):
    if images.shape[1:3] == tuple(shape):
        return images
    return ops.image.resize(images, shape, interpolation="bilinear", data_format="channels_last")


def _build_quantizer(config, seed):
    fields = "num_embeddings", "embedding_dim", "commitment_cost", "l2_normalized", "rotation_trick"
    shared = {name: getattr(config, name) for name in fields} | {"seed": seed, "name": "quantizer"}
    if config.codebook == "gradient":
        return VectorQuantizer(**shared)
    return VectorQuantizerEMA(
        decay=config.decay, restart_threshold=config.restart_threshold, **shared
    )

"""The VQ-VAE: picture -> latents -> codes -> picture, with its pre-processing inside."""

import dataclasses
import os

import keras
from keras import ops

from brainslices.data.archive import FOREGROUND_THRESHOLD
from brainslices.data.crop import CropBox
from brainslices.distributed.collectives import replica_count
from brainslices.errors import InputError
from brainslices.evaluation.image_metrics import bits_per_pixel_raw
from brainslices.evaluation.ssim import SMALLEST_SIDE, ssim, ssim_foreground
from brainslices.runs.loading import load_model
from vqvae.codebook_metrics import CodebookPerplexity, CodebookUsage
from vqvae.config import VQVAEConfig
from vqvae.networks import build_decoder, build_encoder
from vqvae.quantizer import VectorQuantizer, VectorQuantizerEMA

__all__ = ["VQVAE"]


@keras.saving.register_keras_serializable(package="vqvae")
class VQVAE(keras.Model):
    """Vector-quantised variational autoencoder of brain slices.

    Takes and gives pictures as the source has them. Inside, the crop is cut out, the residual
    (image - mean) / std of the training slices is extracted and resampled to the coded size, and
    all is undone at the end: nobody can forget or repeat it.

    Args:
        image_shape: (rows, cols) of the source's pictures.
        crop: (top, left, rows, cols) of the part that is coded. It may overhang the picture.
        mean: float, mean intensity of the training crops, in [0, 1].
        std: float, their standard deviation, positive.
        seed: int, for the first codebook and the restarts of dead codes.
        dtype: dtype policy of the networks; by default the global one. Quantiser, losses and
            scores are float32 always.
        name: str, the Keras name.
        **config: the fields of `VQVAEConfig`.

    Call arguments:
        inputs: float tensor of shape (batch, rows, cols, 1), intensities in [0, 1].
        training: bool.

    Returns:
        `{"reconstruction", "codes"}`: float32 of the shape of `inputs`, not clipped, since the
        losses need the gradient outside [0, 1]; and int32 of shape (batch, r, c).
        `reconstruct`, `decode` and `decode_codes` clip.

    Raises:
        InputError: if `std` is not positive, or the crop is smaller than the window of SSIM.

    Reference:
        van den Oord, Vinyals, Kavukcuoglu 2017, arXiv 1711.00937.
    """

    def __init__(self, image_shape, crop, mean, std, seed=0, dtype=None, name="vqvae", **config):
        super().__init__(name=name, dtype=dtype)
        self.config = config = VQVAEConfig(**{**config, "channels": tuple(config["channels"])})
        self.image_shape, self.crop = tuple(image_shape), tuple(crop)
        self.mean, self.std, self.seed = mean, std, seed
        if not std > 0:
            raise InputError(f"`std` must be positive. Received: std={std}.")
        if min(self.crop[2:]) < SMALLEST_SIDE:
            raise InputError(
                f"The crop must have sides of at least {SMALLEST_SIDE} pixels, the window of SSIM. "
                f"Received: crop={self.crop} (top, left, rows, cols)."
            )
        step = config.downsampling
        self.code_grid_shape = tuple(
            max(1, round(side * config.magnification / step)) for side in self.crop[2:]
        )
        self.coded_shape = tuple(side * step for side in self.code_grid_shape)
        self._add_networks(config)
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
        quantized, codes = self.quantizer(self._latents(inputs, training), training=training)
        return {"reconstruction": self._picture(quantized, training), "codes": codes}

    def _latents(self, images, training=False):
        residual = (self.cut(ops.cast(images, "float32")) - self.mean) / self.std
        return self.encoder(_resample(residual, self.coded_shape), training=training)

    def _picture(self, quantized, training=False):
        residual = ops.cast(self.decoder(quantized, training=training), "float32")
        return self.paste(_resample(residual, self.crop[2:]) * self.std + self.mean)

    def cut(self, images):
        """The coded part of pictures: (batch, rows, cols, 1) -> (batch, *crop sides, 1)."""
        picture, box = CropBox(*self.crop).windows(self.image_shape)
        return ops.pad(images[picture], _margins(box, self.crop[2:]))

    def paste(self, crops):
        """The inverse of `cut`, with zeros around the coded part."""
        picture, box = CropBox(*self.crop).windows(self.image_shape)
        return ops.pad(crops[box], _margins(picture, self.image_shape))

    def encode(self, images):
        """Pictures (batch, rows, cols, 1) in [0, 1] -> latents (batch, r, c, embedding_dim)."""
        return self._latents(images)

    def encode_to_codes(self, images):
        """Pictures (batch, rows, cols, 1) in [0, 1] -> codes, int32 of shape (batch, r, c)."""
        return self.quantizer.codes_of(self.encode(images))

    def decode(self, quantized):
        """Quantised latents (batch, r, c, embedding_dim) -> pictures in [0, 1]."""
        return ops.clip(self._picture(quantized), 0.0, 1.0)

    def decode_codes(self, codes):
        """Codes (batch, r, c) -> pictures (batch, rows, cols, 1) in [0, 1]."""
        return self.decode(self.quantizer.lookup(codes))

    def reconstruct(self, images):
        """Pictures (batch, rows, cols, 1) in [0, 1] -> the same after coding, in [0, 1]."""
        return self.decode_codes(self.encode_to_codes(images))

    @classmethod
    def from_run(cls, run: str | os.PathLike, dtype: str | None = None) -> "VQVAE":
        """Load the trained model of a run, its best epoch.

        Args:
            run: the run folder of `train_vqvae.py`.
            dtype: dtype policy to run it in; by default the one it was trained in.

        Raises:
            InputError: if the run is of another kind or format, has no model yet, or a damaged one.
        """
        return load_model(run, "vqvae", dtype)

    @property
    def bits_per_pixel_raw(self):
        """Bits a source pixel of the code grid without an entropy coder."""
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
        # The quantiser's is the only one; replicas that were here before may have left theirs.
        quantizer_loss = self.losses[-1]
        values = {"reconstruction_loss": reconstruction_loss, "quantizer_loss": quantizer_loss}
        for name, value in values.items():
            self.loss_metrics[name].update_state(value, sample_weight=ops.shape(x)[0])
        if not training:
            self._score(originals, ops.clip(reconstructions, 0.0, 1.0))
        return (reconstruction_loss + quantizer_loss) / replica_count()

    def _score(self, originals, reconstructions):
        self.score_metrics["ssim"].update_state(ssim(originals, reconstructions))
        # As in the reported score, slices without foreground have no say.
        self.score_metrics["ssim_foreground"].update_state(
            ssim_foreground(originals, reconstructions),
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
            shown = ops.clip(reconstructions, 0.0, 1.0)
            loss += config.ssim_weight * (1.0 - ops.mean(ssim(originals, shown)))
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
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def _margins(window, shape):
    """What `ops.pad` puts around a window to fill a picture of some rows and cols."""
    sides = [(span.start, size - span.stop) for span, size in zip(window[1:], shape, strict=True)]
    return [(0, 0), *sides, (0, 0)]


def _resample(images, shape):
    if images.shape[1:3] == tuple(shape):
        return images
    return ops.image.resize(images, shape, interpolation="bilinear", data_format="channels_last")


def _build_quantizer(config, seed):
    shared = {
        "num_embeddings": config.num_embeddings,
        "embedding_dim": config.embedding_dim,
        "commitment_cost": config.commitment_cost,
        "l2_normalized": config.l2_normalized,
        "rotation_trick": config.rotation_trick,
        "seed": seed,
        "name": "quantizer",
    }
    if config.codebook == "gradient":
        return VectorQuantizer(**shared)
    return VectorQuantizerEMA(
        decay=config.decay, restart_threshold=config.restart_threshold, **shared
    )

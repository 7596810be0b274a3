"""A search space of tiny VQ-VAEs; one of its learning rates makes the loss NaN."""

from dataclasses import replace

from vqvae.config import DEFAULT

MODEL = {"channels": (8, 16), "magnification": 1.0, "encoder_blocks": 0, "decoder_blocks": 0}


def space(hp):
    model = replace(
        DEFAULT.model,
        num_embeddings=hp.Choice("num_embeddings", [8, 16, 32], default=16),
        embedding_dim=4,
        **MODEL,
    )
    rate = hp.Choice("learning_rate", [1e-3, 1e30], default=1e-3)
    return model, replace(DEFAULT.training, learning_rate=rate, batch_size=8, gradient_clip=0.0)

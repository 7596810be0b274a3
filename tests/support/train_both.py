"""Train both stages, small, on a phantom archive: python train_both.py ARCHIVE OUT DEVICES.

A program of its own, since a process configures its devices only once. DEVICES is the number of
virtual CPUs under TensorFlow.
"""

import sys
from pathlib import Path

from helpers import tiny_config, tiny_prior_config, tiny_prior_training, tiny_training

from brainslices.distributed.collectives import run_on_primary
from brainslices.distributed.multihost import distributed_session

EPOCHS = 3


def use_virtual_devices(count):
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        virtual = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, virtual)


def main(archive, out, devices):
    use_virtual_devices(int(devices))
    from pixelcnn.training import train as train_pixelcnn
    from vqvae.encode import load_or_encode
    from vqvae.training import train as train_vqvae

    with distributed_session():
        vqvae, prior = Path(out) / "vqvae", Path(out) / "pixelcnn"
        # Most steps exceed this norm: the gradient of the whole batch must be clipped.
        training = tiny_training(epochs=EPOCHS, gradient_clip=0.05, mirror=True)
        config = tiny_config(encoder_blocks=0, decoder_blocks=0)
        train_vqvae(Path(archive), vqvae, config, training)
        training = tiny_prior_training(epochs=EPOCHS, gradient_clip=0.05)
        grids = run_on_primary(load_or_encode, vqvae, None, training.variants)
        # Dropout masks depend on the number of devices.
        config = tiny_prior_config(dropout=0.0, layers=1, attention_layers=1)
        train_pixelcnn(grids, prior, config, training)


if __name__ == "__main__":
    main(*sys.argv[1:])

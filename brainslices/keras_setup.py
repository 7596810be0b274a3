"""Fixed Keras settings: importing this module overrides those of the user's keras.json.

`~/.keras/keras.json` sets the float type and the image format of every layer, metric and constant
that does not name its own. With other values the same run would be another model.
"""

import functools

from brainslices.errors import InputError

__all__ = ["BACKENDS", "runs_on_cpu"]

BACKENDS = ("tensorflow", "jax")

try:
    import keras
except Exception as error:  # anything: keras.json may hold any value, and a backend may be broken
    raise InputError(
        f"Keras cannot be imported ({error}). Install its backend, correct ~/.keras/keras.json, or "
        f"set KERAS_BACKEND to {' or '.join(BACKENDS)}."
    ) from error

if keras.config.backend() not in BACKENDS:
    raise InputError(
        f"Keras must run on {' or '.join(BACKENDS)}. Received: backend={keras.config.backend()!r}, "
        f"from KERAS_BACKEND or ~/.keras/keras.json. Set KERAS_BACKEND={BACKENDS[0]}."
    )
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
keras.config.set_image_data_format("channels_last")


@functools.cache
def runs_on_cpu() -> bool:
    """Return whether all devices of this process are CPUs."""
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())

"""Tell data whose images a mirror would change into something else: characters."""

from collections.abc import Iterable, Sequence

from reszoo.preprocessing import Pixels

_DIGITS = tuple("0123456789")
# How names of data sets of characters begin; fashion_mnist is none of them.
_OF_CHARACTERS = (
    *("mnist", "emnist", "kmnist", "svhn", "cmaterdb", "omniglot"),
    "binary_alpha_digits",
)


def are_digits(class_names: Sequence[str]) -> bool:
    """Return whether the classes are the ten digits, "0" to "9", by name."""
    return tuple(class_names) == _DIGITS


def is_of_characters(data_set: str) -> bool:
    """Return whether a data set of TensorFlow Datasets shows digits or letters."""
    return data_set.lower().startswith(_OF_CHARACTERS)


def are_grey(images: Iterable[Pixels]) -> bool:
    """Return whether all images `(height, width, 3)` are without colour."""
    return all(bool((image == image[..., :1]).all()) for image in images)

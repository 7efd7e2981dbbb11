"""The smallest net with every kind of layer, for what is traced again and again."""

from reszoo.specs import SPECS

RESNET8 = SPECS["resnet8"]

"""The smallest net with every kind of layer, for what is traced again and again."""

from dataclasses import replace

from reszoo.specs import SPECS

RESNET8 = replace(SPECS["resnet20"], name="resnet8", depths=(1, 1, 1))

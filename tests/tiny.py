"""The smallest nets, for what is traced again and again."""

from reszoo.specs import SPECS, ResNetSpec

# Every kind of layer.
RESNET8 = SPECS["resnet8"]
# Two blocks, the second with a projection: two thirds of ResNet-8 to trace. For tests
# of what happens around a step.
TWO_BLOCKS = ResNetSpec(
    name="two-blocks",
    depths=(1, 1),
    widths=(16, 32),
    stem="3x3",
    classes=10,
    image_size=32,
)

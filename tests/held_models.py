"""Tiny models in the forms in which people hold large ones."""

import torch
from torch import nn


class Packed8(nn.Module):
    """As AWQ and GPTQ make them: no nn.Linear, eight-bit numbers in a column, and the widths declared."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8).reshape(-1, 1))
        self.register_buffer("scales", scale)
        self.bias = linear.bias

    def dense(self):
        return self.qweight.reshape(self.out_features, self.in_features) * self.scales

    def forward(self, x):
        return nn.functional.linear(x, self.dense().to(x.dtype), self.bias)


class Packed4(nn.Linear):
    """As bitsandbytes makes them: an nn.Linear whose weight is bytes [n / 2, 1]."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 7
        numbers = ((linear.weight.detach() / scale).round() + 8).to(torch.uint8).reshape(-1)
        self.register_buffer("scales", scale)
        self.weight = nn.Parameter((numbers[::2] * 16 + numbers[1::2]).reshape(-1, 1), requires_grad=False)

    def dense(self):
        pairs = self.weight.reshape(-1)
        numbers = torch.stack([pairs // 16, pairs % 16], 1).reshape(self.out_features, self.in_features)
        return (numbers.float() - 8) * self.scales

    def forward(self, x):
        return nn.functional.linear(x, self.dense().to(x.dtype), self.bias)


def swap(model, make):
    """Every linear map inside the blocks by what `make` makes of it."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(module, name, make(child))
    return model


def dense(packed):
    """The plain linear map that a packed one computes."""
    linear = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(packed.dense())
        if packed.bias is not None:
            linear.bias.copy_(packed.bias)
    return linear

"""The messages of protos/generate.proto."""

from goldfinch import _descriptors

globals().update(_descriptors.named("goldfinch/generate.proto", __name__))

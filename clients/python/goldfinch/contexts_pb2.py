"""The messages of protos/contexts.proto."""

from goldfinch import _descriptors

globals().update(_descriptors.named("goldfinch/contexts.proto", __name__))

"""The configuration of a Tiny-ONN checkpoint: that of its dense model, and the object `tinyonn`, which describes its experts."""

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

OWN = ("architectures", "auto_map", "model_type", "tinyonn", "tinyonn_beside", "transformers_version")  # what a dense configuration does not have, or has otherwise
EARLIER = ("rope_scaling", "rope_theta", "torch_dtype")  # keys that `rope_parameters` and `dtype` took the place of


class TinyOnnConfig(PretrainedConfig):
    """All keys of the dense model's configuration stand beside `tinyonn`; `tinyonn["dense"]` says of which family they are."""

    model_type = "tinyonn"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    def __init__(self, tinyonn=None, tinyonn_beside=None, **kwargs):
        self.tinyonn, self.tinyonn_beside = tinyonn or {}, dict(tinyonn_beside or {})  # the second: by layer, what a choice of neurons need not have
        dense = self._dense(kwargs)
        made = {key: value for key, value in dense.to_dict().items() if key not in OWN}
        given = {key: value for key, value in kwargs.items() if key not in EARLIER}
        super().__init__(**given | made)

    def _dense(self, keys):
        """The dense model's own configuration."""
        family = self.tinyonn.get("dense", {}).get("model_type", "qwen3")
        return CONFIG_MAPPING[family](**{key: value for key, value in keys.items() if key not in OWN})

    def dense_config(self):
        """The dense model's own configuration, which computes its attention as this one says."""
        dense = self._dense(self.to_dict())
        dense._attn_implementation = self._attn_implementation
        return dense

    def to_diff_dict(self):
        """Everything: what goes without saying in one family does not in another."""
        return self.to_dict()

"""Turns a Hugging Face directory into OpenVINO's form. Arguments: from, to, "int8", "int4" or "none"."""

from __future__ import annotations

import sys

from openvino import save_model
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import PreTrainedTokenizerFast

QUANTIZATIONS = {
    "none": {"load_in_8bit": False},
    "int8": {"quantization_config": OVWeightQuantizationConfig(bits=8, sym=False)},
    "int4": {"quantization_config": OVWeightQuantizationConfig(bits=4, sym=True, group_size=64, ratio=1.0)},
}


def main(source: str, target: str, quant: str, tokenizer: str) -> None:
    """Convert the model; the tokenizer is there because a pipeline needs one, prompts are token ids."""
    OVModelForCausalLM.from_pretrained(source, export=True, compile=False, **QUANTIZATIONS[quant]).save_pretrained(target)
    encoder, decoder = convert_tokenizer(PreTrainedTokenizerFast(tokenizer_file=tokenizer, eos_token="</s>"), with_detokenizer=True)
    save_model(encoder, f"{target}/openvino_tokenizer.xml")
    save_model(decoder, f"{target}/openvino_detokenizer.xml")


if __name__ == "__main__":
    main(*sys.argv[1:5])

"""Prediction: inputs, model, outputs."""

from point_rend.utils.third_party import hide_third_party_warnings

# As in the commands; the modules of this folder import Detectron2 afterwards.
hide_third_party_warnings()

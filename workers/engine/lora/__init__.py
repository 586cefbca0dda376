"""LoRAs: read in the formats that are around, fused into a model's weights, verified, and taken out again bit for bit.

``names`` knows the formats' keys, ``file`` what one file adds to which weight, ``fusing`` a
loaded model's weights, ``of_pool`` which LoRAs a pool has.
"""

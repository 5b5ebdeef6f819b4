"""Quantisation: a trained network in 8-bit integers, as an artefact that is kept only if its accuracy holds.

``quantize(QuantizeJob(...))`` of :mod:`resnext_onnx.quantize.job` is the command ``resnext-run quantize`` in Python.
"""

"""The MindSpore engine of resnext: network, trainer, predictor and MINDIR export for any MindSpore device."""

"""C++ inference for resnext: a program without vendor dependencies, and what drives it from Python."""

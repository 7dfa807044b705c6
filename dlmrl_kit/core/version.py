"""The kit's version, where every layer can read it; the package is built with it."""

VERSION = "0.1.0"

"""The kit's version. Every layer can import it, and the package is built with it."""

VERSION = "0.1.0"

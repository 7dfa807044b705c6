"""EBPO for dlmrl_kit. Importing this package registers nothing; ``dlmrl_ebpo.components`` does."""

"""d-TreeRPO for dlmrl_kit. Importing this package registers nothing; ``dlmrl_treerpo.components`` does."""

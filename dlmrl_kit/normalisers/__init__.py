"""What a sum over tokens is divided by."""

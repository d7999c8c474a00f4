"""Steering diffusion models: an executable textbook, and the small package it rests on."""

__version__ = "0.1.0"

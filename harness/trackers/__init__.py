"""Copies of what happens, kept elsewhere: one file per tracker."""

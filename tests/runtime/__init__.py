"""Tests of the runtime: guards, scopes, the gate, events, forks."""

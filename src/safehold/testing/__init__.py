"""Tools for the tests of services that use Safehold."""

"""The product's steps against a plain implementation of the published procedure."""

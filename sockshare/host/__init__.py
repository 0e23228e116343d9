"""The host: small and dull, so that it does not die. Embedded in circus's plugin process, or in supervisord itself."""

"""The wire: bodies of requests and answers, one module for each resource. Import them from clipworks.schemas."""

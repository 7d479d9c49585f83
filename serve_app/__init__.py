"""The Ray Serve application: ingress, culture router, model replicas."""

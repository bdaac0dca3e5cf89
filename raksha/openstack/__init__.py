"""The services of an OpenStack cloud, as far as Raksha asks them: few calls each."""

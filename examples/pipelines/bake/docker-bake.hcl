variable "BASE" {}
variable "REGISTRY" {}

group "default" {
  targets = ["app", "debug"]
}

target "app" {
  context = "app"
  args    = { BASE = BASE }
  tags    = ["${REGISTRY}/app:v1"]
}

target "debug" {
  inherits = ["app"]
  target   = "debug"
  tags     = ["${REGISTRY}/app-debug:v1"]
}

# The container image of virtlet-images, which deploy/image-server.yaml runs: the program alone, as `make build` makes it.
#
#     make build
#     docker build -t registry.example.org/virtlet-images:VERSION -f deploy/image-server.Dockerfile bin
#
# podman and buildah take the same arguments. Push it where your nodes pull from, and write its name into the manifest.
FROM scratch
COPY --chmod=0755 virtlet-images /virtlet-images
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/virtlet-images", "--dir", "/images", "--listen", ":8080"]

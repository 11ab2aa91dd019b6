// A source of endpoints in Go. Each line of its input is a report: the lease in seconds, then the instances of "store"
// that it has. It answers with the gRPC status and the seconds that the report holds.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1 "nourish.local/gen/go/nourish/mesh/v1"
)

func main() {
	connection, err := grpc.NewClient("unix:"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	registry := meshv1.NewRegistryServiceClient(connection)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		seconds, err := strconv.Atoi(words[0])
		if err != nil {
			log.Fatal(err)
		}
		lease := durationpb.New(time.Duration(seconds) * time.Second)
		request := &meshv1.ReportEndpointsRequest{Source: "worker", Lease: lease}
		for _, instance := range words[1:] {
			request.Endpoints = append(request.Endpoints, &meshv1.Endpoint{
				Service: "store", Instance: instance, Subset: "stable", Address: "10.0.0.1", Port: 15006,
			})
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		answer, err := registry.ReportEndpoints(ctx, request)
		cancel()
		fmt.Println(int(status.Code(err)), answer.GetLease().GetSeconds())
	}
}

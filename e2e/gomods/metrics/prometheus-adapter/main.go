// prometheus-adapter's own providers and configuration behind the API machinery of the cluster's Kubernetes. Its own `main` calls that of
// Kubernetes 1.30, which would be compiled for it alone; left out of that `main` here are TLS and tokens towards Prometheus, and
// metrics.k8s.io.
package main

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/prometheus/common/model"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/logs"
	"k8s.io/klog/v2"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/cmd"
	"sigs.k8s.io/prometheus-adapter/pkg/client"
	"sigs.k8s.io/prometheus-adapter/pkg/config"
	customprovider "sigs.k8s.io/prometheus-adapter/pkg/custom-provider"
	externalprovider "sigs.k8s.io/prometheus-adapter/pkg/external-provider"
	"sigs.k8s.io/prometheus-adapter/pkg/naming"
)

const queryTimeout = 10 * time.Second

// patient asks without the caller's deadline; the HTTP client has one. The adapter's client tells Prometheus the time since the
// deadline instead of the time until it, which older versions of the library that it is made for print as nothing, and newer ones as
// a negative time that Prometheus refuses.
type patient struct{ client.Client }

func (p patient) Query(ctx context.Context, at model.Time, query client.Selector) (client.QueryResult, error) {
	return p.Client.Query(context.WithoutCancel(ctx), at, query)
}

type adapter struct {
	cmd.AdapterBase
	prometheusURL, configFile string
	relistInterval, maxAge    time.Duration
}

// must ends the program when there is an error.
func must[T any](value T, err error) func(what string) T {
	return func(what string) T {
		if err != nil {
			klog.Fatalf("%s: %v", what, err)
		}
		return value
	}
}

// namers know how the metrics of the rules are called and asked for.
func (a *adapter) namers(rules []config.DiscoveryRule) []naming.MetricNamer {
	mapper := must(a.RESTMapper())("the API server's resources")
	return must(naming.NamersFromConfig(rules, mapper))("rules")
}

func (a *adapter) parse() {
	a.Name = "prometheus-adapter"
	flags := a.Flags()
	flags.StringVar(&a.prometheusURL, "prometheus-url", "", "URL of Prometheus")
	flags.StringVar(&a.configFile, "config", "", "file of the rules")
	flags.DurationVar(&a.relistInterval, "metrics-relist-interval", 10*time.Minute, "how often Prometheus is asked which series there are")
	flags.DurationVar(&a.maxAge, "metrics-max-age", 10*time.Minute, "how old a series may be to be listed")
	logs.AddFlags(flags)
	if err := flags.Parse(os.Args); err != nil {
		klog.Fatal(err)
	}
}

func main() {
	logs.InitLogs()
	defer logs.FlushLogs()
	a := &adapter{}
	a.parse()
	rules := must(config.FromFile(a.configFile))("--config")
	address := must(url.Parse(a.prometheusURL))("--prometheus-url")
	prometheus := patient{client.NewClient(&http.Client{Timeout: queryTimeout}, address, nil, http.MethodGet)}
	stopped := genericapiserver.SetupSignalContext()

	if len(rules.Rules) > 0 {
		mapper, dynamic := must(a.RESTMapper())("the API server's resources"), must(a.DynamicClient())("a client for the API server")
		metrics, lister := customprovider.NewPrometheusProvider(mapper, dynamic, prometheus, a.namers(rules.Rules), a.relistInterval, a.maxAge)
		lister.RunUntil(stopped.Done())
		a.WithCustomMetrics(metrics)
	}
	if len(rules.ExternalRules) > 0 {
		metrics, lister := externalprovider.NewExternalPrometheusProvider(prometheus, a.namers(rules.ExternalRules), a.relistInterval, a.maxAge)
		lister.RunUntil(stopped.Done())
		a.WithExternalMetrics(metrics)
	}
	if err := a.Run(stopped); err != nil {
		klog.Fatal(err)
	}
}

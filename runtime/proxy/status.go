package proxy

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// handlersField is runtime_handlers in StatusResponse.
const handlersField = 3

// patience is how long a runtime that hangs is waited for where the answer can do without its own: Status is asked every few
// seconds, and kubelet must not lose the node over a runtime that is not essential.
const patience = 2 * time.Second

// ReasonDown is the reason of the condition of a runtime that does not answer.
const ReasonDown = "RuntimeDown"

// report is what one runtime says to Status.
type report struct {
	b *backend
	*runtimeapi.StatusResponse
	err error
}

// nodeStatus asks every runtime. An essential one that fails is the answer; of another a condition tells.
func nodeStatus(ctx context.Context, p *Proxy, c *call) (frame, error) {
	reports := make([]report, len(p.backends))
	err := each(ctx, p.backends, func(ctx context.Context, i int, b *backend) error {
		reports[i] = p.report(ctx, c, b)
		if b.Essential {
			return reports[i].err
		}
		return nil
	})
	if err != nil {
		return frame{}, err
	}
	merged, err := proto.Marshal(p.mergeStatus(reports))
	if err != nil {
		return frame{}, status.Errorf(codes.Internal, "putting the runtimes' status together: %v", err)
	}
	return newFrame(merged), nil
}

func (p *Proxy) report(ctx context.Context, c *call, b *backend) report {
	if !b.Essential {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, p.patience)
		defer cancel()
	}
	r := report{b: b, StatusResponse: &runtimeapi.StatusResponse{}}
	var resp frame
	if resp, r.err = b.pass(ctx, c, c.req); r.err != nil {
		return r
	}
	if err := proto.Unmarshal(resp.bytes(), r.StatusResponse); err != nil {
		r.err = b.nonsense(c.method, err)
		return r
	}
	_, r.err = p.learnHandlers(b, resp)
	return r
}

// mergeStatus puts the reports together, upon that of the default runtime.
func (p *Proxy) mergeStatus(reports []report) *runtimeapi.StatusResponse {
	merged := proto.Clone(reports[0].StatusResponse).(*runtimeapi.StatusResponse)
	merged.Status = &runtimeapi.RuntimeStatus{Conditions: conditions(reports)}
	keepNewer(merged.Status, reports, func(r report) proto.Message { return r.GetStatus() })
	merged.RuntimeHandlers = p.mergeHandlers(reports)
	merged.Features = commonFeatures(reports)
	merged.Info = map[string]string{}
	for _, r := range reports {
		for key, value := range r.Info {
			merged.Info[r.b.Name+"/"+key] = value
		}
	}
	keepNewer(merged, reports, func(r report) proto.Message { return r.StatusResponse })
	return merged
}

// keepNewer puts together the fields of a newer CRI. What the default runtime says counts: it comes last.
func keepNewer(merged proto.Message, reports []report, part func(report) proto.Message) {
	var newer []byte
	for _, r := range append(slices.Clone(reports[1:]), reports[0]) {
		newer = append(newer, part(r).ProtoReflect().GetUnknown()...)
	}
	merged.ProtoReflect().SetUnknown(newer)
}

// conditions are those of the default runtime, of which RuntimeReady speaks for all essential runtimes and NetworkReady for
// all that answer, and those of the others under their names. Kubelet looks at the first two alone.
func conditions(reports []report) []*runtimeapi.RuntimeCondition {
	var all []*runtimeapi.RuntimeCondition
	for _, cond := range reports[0].GetStatus().GetConditions() {
		all = append(all, proto.Clone(cond).(*runtimeapi.RuntimeCondition))
	}
	for _, r := range reports[1:] {
		if r.err != nil {
			all = append(all, &runtimeapi.RuntimeCondition{
				Type: r.b.Name + "/" + runtimeapi.RuntimeReady, Reason: ReasonDown, Message: status.Convert(r.err).Message(),
			})
			continue
		}
		for _, cond := range r.GetStatus().GetConditions() {
			if !cond.GetStatus() && (cond.GetType() == runtimeapi.NetworkReady || cond.GetType() == runtimeapi.RuntimeReady && r.b.Essential) {
				lower(all, cond, r.b)
			}
			named := proto.Clone(cond).(*runtimeapi.RuntimeCondition)
			named.Type = r.b.Name + "/" + named.GetType()
			all = append(all, named)
		}
	}
	return all
}

// lower makes the node's condition false for the reason that a runtime gives.
func lower(all []*runtimeapi.RuntimeCondition, cond *runtimeapi.RuntimeCondition, b *backend) {
	for _, node := range all {
		if node.GetType() == cond.GetType() && node.GetStatus() {
			node.Status, node.Reason = false, cond.GetReason()
			node.Message = fmt.Sprintf("runtime %s: %s", b.Name, cond.GetMessage())
		}
	}
}

// mergeHandlers is the union. Each handler is listed once, by the runtime to which RunPodSandbox would go with it; the
// one without a name is the default runtime's.
func (p *Proxy) mergeHandlers(reports []report) []*runtimeapi.RuntimeHandler {
	given := map[string]int{}
	for _, b := range p.backends {
		for _, name := range b.Handlers {
			given[name] = b.index
		}
	}
	var all []*runtimeapi.RuntimeHandler
	listed := map[string]int{}
	for _, r := range reports {
		if r.err != nil {
			continue
		}
		for _, h := range r.GetRuntimeHandlers() {
			name := h.GetName()
			owner, isGiven := given[name]
			switch other, twice := listed[name]; {
			case name == "" && r.b.index > 0:
			case isGiven && owner != r.b.index, !isGiven && name != "" && len(r.b.Handlers) > 0:
			case twice:
				p.once("handler "+name, fmt.Sprintf("runtime handler %q is that of %s and of %s: pods that ask for it are refused until it is given to one of them (setting `handlers`)",
					name, p.backends[other].Name, r.b.Name))
			default:
				listed[name] = r.b.index
				all = append(all, h)
			}
		}
		for _, name := range r.b.Handlers {
			if _, told := listed[name]; !told {
				listed[name] = r.b.index
				all = append(all, &runtimeapi.RuntimeHandler{Name: name})
			}
		}
	}
	return all
}

// once logs a fault of the set-up a single time, since kubelet would have it logged every few seconds.
func (p *Proxy) once(key, message string) {
	if _, told := p.told.LoadOrStore(key, true); !told {
		p.log.Error(message)
	}
}

// commonFeatures are the features that every runtime that answers has. All are booleans, those of a newer CRI too.
func commonFeatures(reports []report) *runtimeapi.RuntimeFeatures {
	var common []protowire.Number
	for i, r := range reports {
		if r.err != nil {
			continue
		}
		var has []protowire.Number
		raw, _ := proto.Marshal(r.GetFeatures()) // what was read can be written
		_ = fields(raw, func(f field) bool {
			if n, _ := protowire.ConsumeVarint(f.val); f.typ == protowire.VarintType && n != 0 {
				has = append(has, f.num)
			}
			return true
		})
		if i == 0 {
			common = has
		}
		common = slices.DeleteFunc(common, func(n protowire.Number) bool { return !slices.Contains(has, n) })
	}
	var raw []byte
	for _, n := range common {
		raw = protowire.AppendVarint(protowire.AppendTag(raw, n, protowire.VarintType), 1)
	}
	features := &runtimeapi.RuntimeFeatures{}
	_ = proto.Unmarshal(raw, features) // it was just written
	return features
}

// runtimeConfig is the default runtime's, as long as all agree on the cgroup driver: kubelet sets up its cgroups by it.
func runtimeConfig(ctx context.Context, p *Proxy, c *call) (frame, error) {
	answers, by, err := p.askWilling(ctx, c)
	if err != nil {
		return frame{}, err
	}
	var drivers []runtimeapi.CgroupDriver
	for i, answer := range answers {
		var conf runtimeapi.RuntimeConfigResponse
		if err := proto.Unmarshal(answer.bytes(), &conf); err != nil {
			return frame{}, by[i].nonsense(c.method, err)
		}
		drivers = append(drivers, conf.GetLinux().GetCgroupDriver())
		if drivers[i] != drivers[0] {
			return frame{}, status.Errorf(codes.FailedPrecondition, "the runtimes use different cgroup drivers, %s has %s and %s has %s: configure both for that of kubelet",
				by[0].Name, drivers[0], by[i].Name, drivers[i])
		}
	}
	return answers[0], nil
}

// updateRuntimeConfig is for all runtimes that take it.
func updateRuntimeConfig(ctx context.Context, p *Proxy, c *call) (frame, error) {
	answers, _, err := p.askWilling(ctx, c)
	if err != nil {
		return frame{}, err
	}
	return answers[0], nil
}

// askWilling asks all runtimes, and passes over those that do not implement the call, unless nobody does.
func (p *Proxy) askWilling(ctx context.Context, c *call) (answers []frame, by []*backend, err error) {
	all := make([]frame, len(p.backends))
	absent := make([]error, len(p.backends))
	err = each(ctx, p.backends, func(ctx context.Context, i int, b *backend) (err error) {
		all[i], err = b.pass(ctx, c, c.req)
		if status.Code(err) == codes.Unimplemented {
			absent[i], err = err, nil
		}
		return err
	})
	if err == nil {
		err = allAbsent(absent)
	}
	if err != nil {
		return nil, nil, err
	}
	for i, b := range p.backends {
		if absent[i] == nil {
			answers, by = append(answers, all[i]), append(by, b)
		}
	}
	return answers, by, nil
}
